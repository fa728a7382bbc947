"""A line of progress for work that counts its own steps under changing names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from exporters.proof.ladder import Progress as Report
from toolchain.training.progress import Progress, Task

# What is over sooner needs no line.
SILENT_S = 1.0


@contextmanager
def counted(progress: Progress, title: str) -> Iterator[Report]:
    """A function of (name, done, total) that shows a line for each name, with its ETA."""
    with ExitStack() as stack:
        task: Task | None = None
        current, started = "", 0.0

        def report(name: str, done: int, total: int) -> None:
            nonlocal task, current, started
            if name != current or task is None:
                stack.close()
                current, started = name, time.monotonic()
                task = stack.enter_context(progress.training(f"{title} {name}", total))
            if time.monotonic() - started > SILENT_S and task.due():
                task.show(done, 0.0, {})

        yield report
