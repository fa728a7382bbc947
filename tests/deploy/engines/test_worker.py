from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.engines import worker as module
from deploy.engines.worker import Worker, WorkerDied, shared_worker
from deploy.errors import DeviceError, MissingDependency, StorageError


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Worker]]:
    """A worker that forked with one more task, ``"test"``, which a test gives."""
    made: list[Worker] = []

    def make(answer: Any) -> Worker:
        monkeypatch.setitem(sys.modules, "a_task", SimpleNamespace(answer=answer))
        monkeypatch.setitem(module.TASKS, "test", ("a_task", "answer"))
        made.append(Worker(fork=True))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_answers_come_from_another_process(forked: Any) -> None:
    worker = forked(lambda request, progress: {"pid": os.getpid(), "twice": 2 * request["x"]})
    first, second = (worker.ask("test", {"x": x}) for x in (1, 2))
    assert (first["twice"], second["twice"]) == (2, 4)
    assert first["pid"] == second["pid"] != os.getpid()


def test_progress_arrives_before_the_answer(forked: Any) -> None:
    def answer(request: Any, progress: Any) -> Any:
        progress("half", 0.5)
        progress("whole", 1.0)
        return {}

    seen: list[tuple[str, float]] = []
    worker = forked(answer)
    assert worker.ask("test", {}, lambda *said: seen.append(said)) == {}
    assert seen == [("half", 0.5), ("whole", 1.0)]
    assert worker.ask("test", {}) == {}


@pytest.mark.parametrize("kind", [DeviceError, StorageError, MissingDependency])
def test_what_the_child_refuses_is_raised_here(forked: Any, kind: type[Exception]) -> None:
    def answer(request: Any, progress: Any) -> Any:
        raise kind("where: what")

    with pytest.raises(kind, match="where: what") as refused:
        forked(answer).ask("test", {})
    assert type(refused.value) is kind


def test_a_bug_in_the_child_is_a_bug_here(forked: Any) -> None:
    def answer(request: Any, progress: Any) -> Any:
        raise KeyError("oops")

    with pytest.raises(RuntimeError, match="KeyError: 'oops'"):
        forked(answer).ask("test", {})


def test_a_crash_is_one_line_and_the_next_request_finds_a_new_child(forked: Any) -> None:
    def answer(request: Any, progress: Any) -> Any:
        os.write(2, b"terminate called\nafter throwing\n")
        if request["crash"]:
            faulthandler.disable()  # pytest's own would write to the terminal
            os.kill(os.getpid(), signal.SIGSEGV)
        return {"pid": os.getpid()}

    worker = forked(answer)
    before = worker.ask("test", {"crash": False})["pid"]
    with pytest.raises(WorkerDied, match="ended by SIGSEGV; it last said: after throwing") as died:
        worker.ask("test", {"crash": True})
    assert died.value.signal_name == "SIGSEGV"
    assert "\n" not in str(died.value)
    assert worker.ask("test", {"crash": False})["pid"] != before


def test_killed_for_memory_says_so(forked: Any) -> None:
    worker = forked(lambda request, progress: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerDied, match="SIGKILL, probably because memory ran out"):
        worker.ask("test", {})


def test_an_exit_is_no_signal(forked: Any) -> None:
    with pytest.raises(WorkerDied, match="exited with status 3") as died:
        forked(lambda request, progress: os._exit(3)).ask("test", {})
    assert died.value.signal_name == ""


def test_nothing_of_the_child_reaches_the_terminal(forked: Any, capfd: Any) -> None:
    def answer(request: Any, progress: Any) -> Any:
        os.write(1, b"to stdout")
        os.write(2, b"to stderr")
        return {}

    forked(answer).ask("test", {})
    assert capfd.readouterr() == ("", "")


def test_threads_take_turns(forked: Any) -> None:
    def answer(request: Any, progress: Any) -> Any:
        time.sleep(0.001)
        return request

    worker, wrong = forked(answer), []

    def ask(number: int) -> None:
        wrong.extend(i for i in range(20) if worker.ask("test", {"n": [number, i]})["n"][1] != i)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_interrupt_ends_the_child(forked: Any) -> None:
    def interrupt(phase: str, share: float) -> None:
        raise KeyboardInterrupt

    def answer(request: Any, progress: Any) -> Any:
        progress(str(os.getpid()), 0.0)
        time.sleep(0.01 if request.get("quick") else 60)
        return {"pid": os.getpid()}

    worker = forked(answer)
    with pytest.raises(KeyboardInterrupt):
        worker.ask("test", {}, interrupt)
    assert worker.ask("test", {"quick": True})["pid"] != os.getpid()


def test_a_started_child_is_this_interpreter_with_these_paths() -> None:
    worker = Worker()
    try:
        with pytest.raises(DeviceError, match="driver|CUDA|GPU") as refused:
            # Where there is a driver the probe answers; either way it was this package's code.
            worker.ask("probe", {})
            raise DeviceError("the driver answered")
        assert worker._process is not None
        assert worker._process.args[0] == sys.executable  # type: ignore[index]
        assert "\n" not in str(refused.value)
    finally:
        worker.close()


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "not-a-program", "other-program"])
def test_an_interpreter_that_cannot_be_started_is_forked(
    executable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if executable == "not-a-program":
        path = tmp_path / executable
        path.write_bytes(b"\x7fELF of another machine")
        path.chmod(0o755)
        executable = str(path)
    if executable == "other-program":
        path = tmp_path / executable
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o755)
        executable = str(path)
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setitem(
        sys.modules, "a_task", SimpleNamespace(answer=lambda request, progress: {"ok": True})
    )
    monkeypatch.setitem(module.TASKS, "test", ("a_task", "answer"))
    worker = Worker()
    try:
        assert worker.ask("test", {}) == {"ok": True}
        assert worker._process is None
    finally:
        worker.close()


def test_the_shared_worker_is_one() -> None:
    assert shared_worker() is shared_worker()


def test_every_task_has_its_function() -> None:
    import importlib

    for name, (where, function) in module.TASKS.items():
        assert callable(getattr(importlib.import_module(where), function)), name
