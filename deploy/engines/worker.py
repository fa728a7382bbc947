"""A child process that calls NVIDIA's libraries, so that their crashes and their prints stay in it.

Importer, builder and driver are native code that may end the process: the ONNX importer of
TensorRT-RTX 1.7 dies on some corrupt graphs, a lean runtime without a driver dies at the first
attribute.  The worker's own output goes to a scratch file; answers come back as JSON lines through
a pipe.  One worker serves many requests (importing the bindings costs more than a small graph) and
is started again after a crash.

The child is this interpreter started once more.  Where that does not work (an emulated interpreter
whose path means another one to the kernel, an embedded interpreter) the process forks instead.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from typing import IO, Any, Callable, Dict

from deploy import errors
from deploy.errors import CompressDeployError, DeviceError

Progress = Callable[[str, float], None]
Answer = Dict[str, Any]

# What a worker can be asked, and the function that answers: ``answer(request, progress)``.
TASKS = {
    "probe": ("deploy.engines.driver", "answer_probe"),
    "import": ("deploy.engines.importer", "answer_import"),
    "build": ("deploy.engines.compiling", "answer_build"),
}
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from deploy.engines.worker import serve; serve(0, int(sys.argv[2]))"
)


class WorkerDied(DeviceError):
    """The child process ended without an answer; ``signal_name`` is empty when it exited."""

    def __init__(self, message: str, signal_name: str) -> None:
        super().__init__(message)
        self.signal_name = signal_name


class Worker:
    """One child process.  ``ask`` starts it when needed; safe to use from several threads."""

    def __init__(self, *, fork: bool = False) -> None:
        self._fork_only = fork
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: IO[bytes] | None = None
        self._answers: IO[bytes] | None = None
        self._noise: IO[bytes] | None = None

    def ask(self, task: str, request: Answer, progress: Progress | None = None) -> Answer:
        """The answer to one request, and ``progress(phase, fraction)`` on the way.

        Raises:
            WorkerDied: The child crashed.
            CompressDeployError: What the child refused, as it was raised there.
        """
        with self._lock:
            if self._answers is None:
                self._start()
            try:
                return self._exchange({"task": task, "request": request}, progress)
            except BaseException as error:
                if not isinstance(error, CompressDeployError) or isinstance(error, WorkerDied):
                    self._stop()  # a half-read answer would be taken for the next one
                raise

    def close(self) -> None:
        """End the child; the next ``ask`` starts another."""
        with self._lock:
            self._stop()

    def _exchange(self, message: Answer, progress: Progress | None) -> Answer:
        assert self._requests is not None and self._answers is not None
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._died() from None
        for line in self._answers:
            answer = json.loads(line)
            if "progress" in answer:
                if progress is not None:
                    progress(*answer["progress"])
            elif "refused" in answer:
                raise _error(answer["refused"], answer["message"])
            elif "bug" in answer:
                raise RuntimeError(f"in the child process:\n{answer['bug']}")
            else:
                return dict(answer["result"])
        raise self._died()

    def _died(self) -> WorkerDied:
        status = self._wait()
        last = self._last_words()
        name = signal.Signals(-status).name if status < 0 else ""
        how = f"was ended by {name}" if name else f"exited with status {status}"
        hint = ", probably because memory ran out" if name == "SIGKILL" else ""
        return WorkerDied(f"the process that calls TensorRT {how}{hint}{last}", name)

    def _last_words(self) -> str:
        if self._noise is None:
            return ""
        self._noise.seek(0)
        lines = self._noise.read().decode("utf-8", "replace").strip().splitlines()
        return f"; it last said: {' '.join(lines[-1].split())[:200]}" if lines else ""

    def _start(self) -> None:
        for start in (self._fork,) if self._fork_only else (self._spawn, self._fork):
            self._noise = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
            if start() and self._is_this_interpreter():
                return
            self._stop()
        raise DeviceError(
            f"{sys.executable or 'this interpreter'}: no child process could be started; TensorRT "
            "is only called in one, free some memory or processes"
        )

    def _spawn(self) -> bool:
        if not sys.executable:
            return False
        reading, writing = os.pipe()
        command = [sys.executable, "-c", _START, json.dumps(sys.path), str(writing)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._noise,
                stderr=self._noise,
                pass_fds=(writing,),
            )
        except OSError:
            os.close(reading)
            return False
        finally:
            os.close(writing)
        self._requests, self._answers = self._process.stdin, os.fdopen(reading, "rb")
        return True

    def _fork(self) -> bool:
        asked_read, asked_write = os.pipe()
        said_read, said_write = os.pipe()
        assert self._noise is not None
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns when threads run; the child only calls what it imports itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            for end in (asked_read, asked_write, said_read, said_write):
                os.close(end)
            return False
        if pid == 0:
            try:
                os.close(asked_write)
                os.close(said_read)
                for output in (1, 2):
                    os.dup2(self._noise.fileno(), output)
                serve(asked_read, said_write)
            finally:
                os._exit(1)
        os.close(asked_read)
        os.close(said_write)
        self._pid = pid
        self._requests, self._answers = os.fdopen(asked_write, "wb"), os.fdopen(said_read, "rb")
        return True

    def _is_this_interpreter(self) -> bool:
        assert self._answers is not None
        line = self._answers.readline()
        return bool(line) and json.loads(line) == _greeting()

    def _wait(self) -> int:
        if self._process is not None:
            return self._process.wait()
        assert self._pid is not None
        pid, self._pid = self._pid, None
        _, status = os.waitpid(pid, 0)
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._wait()
        for file in (self._requests, self._answers, self._noise):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        self._process = self._pid = None
        self._requests = self._answers = self._noise = None


def serve(asked: int, said: int) -> None:
    """The child's side: answer requests from one descriptor on the other until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
    with os.fdopen(asked, "rb") as requests, os.fdopen(said, "wb") as answers:

        def say(answer: Answer) -> None:
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()

        def progress(phase: str, fraction: float) -> None:
            say({"progress": [phase, fraction]})

        say(_greeting())
        for line in requests:
            message = json.loads(line)
            module, function = TASKS[message["task"]]
            try:
                answer = getattr(importlib.import_module(module), function)
                say({"result": answer(message["request"], progress)})
            except CompressDeployError as error:
                say({"refused": type(error).__name__, "message": str(error)})
            except MemoryError:
                say({"refused": "DeviceError", "message": "the host's memory is exhausted"})
            except BrokenPipeError:
                break
            except Exception:
                say({"bug": traceback.format_exc()})
    os._exit(0)  # without the libraries' own farewells, which may crash


def _greeting() -> Answer:
    return {"python": sys.version, "machine": platform.machine()}


def _error(kind: str, message: str) -> CompressDeployError:
    found = getattr(errors, kind, CompressDeployError)
    return found(message)


_shared: Worker | None = None
_shared_pid = 0
_starting = threading.Lock()


def shared_worker() -> Worker:
    """The worker of this process, kept until it ends."""
    global _shared, _shared_pid
    with _starting:
        if _shared is None or _shared_pid != os.getpid():  # a forked child needs its own
            _shared, _shared_pid = Worker(), os.getpid()
            atexit.register(_close, _shared, _shared_pid)
        return _shared


def _close(worker: Worker, owner_pid: int) -> None:
    if os.getpid() == owner_pid:
        worker.close()
