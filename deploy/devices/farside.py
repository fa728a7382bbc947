"""What answers at the far end of an ssh connection.  Sent there as text: it imports nothing of ours.

One message is a line of JSON, followed by ``count`` raw bytes where it says so; every message gets
one answer of the same shape, ``{"error": ...}`` where it could not be done.  Files are stored under
their SHA-256 and written at their position, so that a copy goes on where the last one was cut off
and two copies of the same file cannot spoil each other.  A job is a folder and a process in a
session of its own: it does not notice that the connection has gone.

    FOLDER/store/<sha256>[.part]     files, complete or on the way
    FOLDER/jobs/<id>/                bundle/ out/ input.json progress log process.json end
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Tuple

READY = "compress-deploy far side"
BLOCK = 1 << 20
POLL_S = 0.25
SPARE_BYTES = 8 << 20  # what a run itself writes: record, progress, log
UNUSED_AFTER_S = 7 * 86400.0
RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt_rtx")
# Keeps the exit status of a runner whose starter is long gone; "trap" so that a signal to the whole
# session ends the runner and leaves this shell to write the status down.
KEEP_STATUS = 'trap : TERM; "$@"; echo $? >end.part; mv end.part end'

Answer = Tuple[Dict[str, Any], bytes]


class FarSide:
    """The far end's files and jobs, below one folder."""

    def __init__(self) -> None:
        self.folder = Path()

    def hello(self, message: dict[str, Any], data: bytes) -> Answer:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "compress-deploy"
        self.folder = Path(message["folder"] or cache).expanduser().absolute()
        for part in ("store", "jobs"):
            (self.folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        return {
            "python": platform.python_version(),
            "executable": sys.executable,
            "machine": platform.machine(),
            "numpy": importlib.util.find_spec("numpy") is not None,
            "runtimes": [name for name in RUNTIMES if importlib.util.find_spec(name)],
            "folder": str(self.folder),
            "free_bytes": shutil.disk_usage(str(self.folder)).free,
            "now_s": time.time(),
        }, b""

    def have(self, message: dict[str, Any], data: bytes) -> Answer:
        """How many bytes of each wanted file are here; makes room for the others where it must."""
        wanted: dict[str, int] = message["files"]
        held = {}
        for name in wanted:
            whole, part = self._stored(name)
            if not wanted[name]:
                whole.touch()  # there is nothing to send
            if part.exists() and part.stat().st_size >= wanted[name]:
                self._finish(name)  # its last block was written and nobody lived to check it
            if whole.exists():
                os.utime(str(whole))
                held[name] = wanted[name]
            else:
                held[name] = part.stat().st_size if part.exists() else 0
        self._forget(wanted, UNUSED_AFTER_S)
        needed = sum(size - held[name] for name, size in wanted.items())
        if needed and self._free() < needed + SPARE_BYTES:
            self._forget(wanted, 0.0)
        if needed and self._free() < needed + SPARE_BYTES:
            raise Refused(
                f"{self.folder}: {needed + SPARE_BYTES} bytes are needed and {self._free()} are "
                "free; free some space there or choose another folder with --dir"
            )
        return {"held": held}, b""

    def put(self, message: dict[str, Any], data: bytes) -> Answer:
        """A block of a file at its position; with the last one the file is checked and stored."""
        name, size = str(message["name"]), int(message["size"])
        whole, part = self._stored(name)
        if whole.exists():
            return {"held": size}, b""
        handle = os.open(str(part), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(handle, data[written:], int(message["offset"]) + written)
        except OSError:
            part.unlink()  # a full disk is not left fuller than it was
            raise
        finally:
            os.close(handle)
        held = part.stat().st_size
        if held >= size and not self._finish(name):
            raise Refused(f"{part}: what arrived is not what was sent; copy it again")
        return {"held": min(held, size)}, b""

    def start(self, message: dict[str, Any], data: bytes) -> Answer:
        """Lay a job's folder out and start its runner; asked again, the job that was started."""
        job = self._job(message)
        if not (job / "process.json").exists():
            shutil.rmtree(str(job), ignore_errors=True)
            (job / "out").mkdir(parents=True)
            for inside, name in message["files"].items():
                self._lend(name, job / inside)
            (job / "input.json").write_text(json.dumps(message["input"]), encoding="utf-8")
            (job / "progress").touch()
            command = [sys.executable, str(job / "runner.pyz"), *message["arguments"]]
            with (job / "log").open("wb") as log:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", KEEP_STATUS, "sh", *command],
                    cwd=str(job),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            text = json.dumps({"pid": process.pid, "since": _since(process.pid)})
            (job / "process.part").write_text(text, encoding="utf-8")
            (job / "process.part").replace(job / "process.json")
        return {}, b""

    def follow(self, message: dict[str, Any], data: bytes) -> Answer:
        """Progress from ``offset`` on, as soon as there is some or the job ended; ``end`` says how."""
        job, offset = self._job(message), int(message["offset"])
        if not job.is_dir():
            raise Refused(f"{job}: this job is gone; somebody removed it: start it again")
        until = time.monotonic() + float(message["for_s"])
        while True:
            alive = self._alive(job)  # before the file is read: what comes later is not missed
            ended = (job / "end").read_text().strip() if (job / "end").exists() else None
            with (job / "progress").open("rb") as file:
                file.seek(offset)
                text = file.read(BLOCK)
            text = text[: text.rfind(b"\n") + 1]  # whole lines only
            if text or ended or not alive or time.monotonic() >= until:
                return {
                    "offset": offset + len(text),
                    "end": int(ended) if ended else None,
                    "alive": alive,
                    "count": len(text),
                }, text
            time.sleep(POLL_S)

    def files(self, message: dict[str, Any], data: bytes) -> Answer:
        """What the job has written: names inside ``out`` with their sizes; the end of its log."""
        job = self._job(message)
        out = job / "out"
        found = {
            str(path.relative_to(out)): path.stat().st_size
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }
        log = (job / "log").read_bytes()[-4000:] if (job / "log").exists() else b""
        text = log.decode("utf-8", "replace")
        return {"files": found, "log": text, "free_bytes": self._free()}, b""

    def fetch(self, message: dict[str, Any], data: bytes) -> Answer:
        path = self._job(message) / "out" / message["name"]
        with path.open("rb") as file:
            file.seek(int(message["offset"]))
            block = file.read(BLOCK)
        return {"count": len(block)}, block

    def stop(self, message: dict[str, Any], data: bytes) -> Answer:
        """Ask the job to end (SIGTERM), or end it (SIGKILL) where ``kill`` is set."""
        job = self._job(message)
        if self._alive(job):
            process = json.loads((job / "process.json").read_text(encoding="utf-8"))
            kind = signal.SIGKILL if message.get("kill") else signal.SIGTERM
            os.killpg(int(process["pid"]), kind)
        return {}, b""

    def clean(self, message: dict[str, Any], data: bytes) -> Answer:
        shutil.rmtree(str(self._job(message)), ignore_errors=True)
        return {}, b""

    def _stored(self, name: str) -> tuple[Path, Path]:
        if not (len(name) == 64 and name.isalnum()):
            raise Refused(f"{name!r} is not a SHA-256")
        return self.folder / "store" / name, self.folder / "store" / (name + ".part")

    def _finish(self, name: str) -> bool:
        """Store a file whose bytes are all here, or drop them where they are not the file's."""
        whole, part = self._stored(name)
        if _sha256(part) != name:
            part.unlink()
            return False
        part.replace(whole)
        return True

    def _job(self, message: dict[str, Any]) -> Path:
        name = str(message["job"])
        if not name.isalnum():
            raise Refused(f"{name!r} is not the name of a job")
        return self.folder / "jobs" / name

    def _lend(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole, _ = self._stored(name)
        try:
            os.link(str(whole), str(path))
        except FileNotFoundError:
            raise Refused(f"{whole}: is gone; copy it again") from None
        except OSError:  # a file system without hard links
            shutil.copyfile(str(whole), str(path))

    def _alive(self, job: Path) -> bool:
        try:
            process = json.loads((job / "process.json").read_text(encoding="utf-8"))
            os.kill(int(process["pid"]), 0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except (PermissionError, ValueError):
            # The number is another user's process now; or the power went while it was written down.
            return False
        # The number alone may have gone to another process since, after a restart above all.
        return bool(_since(process["pid"]) == process["since"])

    def _free(self) -> int:
        return shutil.disk_usage(str(self.folder)).free

    def _forget(self, wanted: dict[str, int], after_s: float) -> None:
        """Drop files that no job holds and nobody used for ``after_s``, and forgotten jobs."""
        now_s = time.time()  # this machine's own clock made the times it is compared with
        for job in (self.folder / "jobs").iterdir():
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                if job.stat().st_mtime < now_s - UNUSED_AFTER_S and not self._alive(job):
                    shutil.rmtree(str(job), ignore_errors=True)
        for path in (self.folder / "store").iterdir():
            with contextlib.suppress(FileNotFoundError):  # whole by now, or forgotten by another
                unused = path.stat().st_mtime <= now_s - after_s and path.stat().st_nlink == 1
                if unused and path.name.partition(".")[0] not in wanted:
                    path.unlink()


class Refused(Exception):
    """Something a user can put right; the text says what."""


def _since(pid: int) -> list[str]:
    """What tells this process from another one with its number: start of the system and its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    dead = stat[0] in ("Z", "X")  # ended, and its starter, this very process, has not asked yet
    return [] if dead else [boot, stat[19]]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def serve(received: BinaryIO, sent: BinaryIO) -> None:
    """Answer messages until there are no more."""
    side = FarSide()
    verbs: dict[str, Callable[[dict[str, Any], bytes], Answer]] = {
        verb.__name__: verb
        for verb in (
            side.hello,
            side.have,
            side.put,
            side.start,
            side.follow,
            side.files,
            side.fetch,
            side.stop,
            side.clean,
        )
    }
    sent.write(READY.encode() + b"\n")
    sent.flush()
    for line in iter(received.readline, b""):
        message = json.loads(line.decode("utf-8"))
        count = int(message.get("count", 0))
        data = received.read(count)
        if len(data) < count and message["do"] != "put":
            return
        try:
            answer, block = verbs[message["do"]](message, data)
        except Refused as error:
            answer, block = {"error": str(error)}, b""
        except OSError as error:
            where = error.filename or side.folder
            answer, block = {"error": f"{where}: {error.strerror}", "errno": error.errno}, b""
        sent.write(json.dumps(answer).encode("utf-8") + b"\n" + block)
        sent.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
