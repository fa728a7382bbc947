"""Runs of an ablation, one after another here or several at a time in processes of their own.

A process keeps what it has read (data, libraries) for its next run. One that dies, or in which something
unforeseen happened, costs its own run and is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from deploy.errors import CompressDeployError
from toolchain.ablation.outcome import Outcome, run_one

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.training.progress import Progress

LOGS = "logs"
GOODBYE_S = 5.0


@dataclass(frozen=True)
class Job:
    """One run to be: a variant of the recipe with one seed."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def label(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    """A run that did not come to an end, and why in one line."""

    variant: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """How a job ended and how long that took here; a run that was found takes next to nothing."""

    result: Outcome | Failure
    seconds: float


def run_here(jobs: Sequence[Job], out: Path, progress: Progress) -> Iterator[Finished]:
    """Run the jobs one after another in this process, shown as any run is."""
    for number, job in enumerate(jobs, 1):
        started = time.monotonic()
        result: Outcome | Failure
        try:
            with progress.stage(job.label, number, len(jobs)):
                result = run_one(job.variant, job.recipe, out, progress)
        except Exception as error:
            result = Failure(job.variant, job.seed, _reason(error, _log(out, job)))
        yield Finished(result, time.monotonic() - started)


def run_in_processes(
    jobs: Sequence[Job], out: Path, count: int, threads: int | None
) -> Iterator[Finished]:
    """Run the jobs in up to ``count`` processes; results come as they are ready.

    What a run says goes into ``out/logs``.

    Args:
        threads: Of each process on the CPU, where the recipe says nothing; None leaves torch's own.
    """
    waiting = list(reversed(jobs))
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < count:
                workers.append(_Worker(out, threads, waiting.pop()))
            ready = wait([worker.connection for worker in workers])
            for worker in [each for each in workers if each.connection in ready]:
                finished, able = worker.result()
                if able and waiting:
                    worker.give(waiting.pop())
                else:
                    workers.remove(worker)
                    worker.end()
                yield finished
    finally:  # also on Ctrl-C: what is finished stays, and checkpoints are whole or absent
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.end()


class _Worker:
    """A process, and the job that it is at."""

    def __init__(self, out: Path, threads: int | None, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_work, args=(theirs, out, threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self._out = out
        self.give(job)

    def give(self, job: Job) -> None:
        self._job, self._started = job, time.monotonic()
        self.connection.send(job)

    def result(self) -> tuple[Finished, bool]:
        """How the job ended, and whether the process can take another."""
        try:
            result, able = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(GOODBYE_S)
            log = _log(self._out, self._job)
            reason = f"its process died (exit code {self._process.exitcode}); see {log}"
            result, able = Failure(self._job.variant, self._job.seed, reason), False
        return Finished(result, time.monotonic() - self._started), able

    def stop(self) -> None:
        """Tell the process to leave its job as it is."""
        self._process.terminate()

    def end(self) -> None:
        """Let the process go, which has nothing to do any more."""
        self.connection.close()
        self._process.join(GOODBYE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, out: Path, threads: int | None) -> None:
    """In a process of its own: run what comes until nothing does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_after_the_parent, daemon=True).start()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        result, able = _run_logged(job, out)
        try:
            connection.send((result, able))
        except BrokenPipeError:
            return


def _leave_after_the_parent() -> None:
    """A parent that was killed tells nobody, and its children would train on."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: object) -> NoReturn:
    """End as a program ends, so that what is half-made is swept away."""
    raise SystemExit(128 + signal.SIGTERM)


def _run_logged(job: Job, out: Path) -> tuple[Outcome | Failure, bool]:
    """The job's result, and whether this process is as good as new."""
    from rich.console import Console

    from toolchain.training.progress import Progress

    path = _log(out, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as log:
        progress = Progress(plain=True, console=Console(file=log, width=200, highlight=False))
        try:
            return run_one(job.variant, job.recipe, out, progress), True
        except CompressDeployError as error:
            progress.say(f"failed: {error}")
            return Failure(job.variant, job.seed, str(error)), True
        except Exception as error:
            traceback.print_exc(file=log)
            return Failure(job.variant, job.seed, _summary(error, path)), False


def _reason(error: Exception, log: Path) -> str:
    """One line; what is not the user's to fix leaves its traceback in a file."""
    if isinstance(error, CompressDeployError):
        return str(error)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return _summary(error, log)


def _summary(error: Exception, log: Path) -> str:
    said = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {said}; a bug, or the machine's limits; see {log}"


def _log(out: Path, job: Job) -> Path:
    return out / LOGS / f"{job.recipe.name}-{job.variant}-{job.seed}.log"
