"""A bar for each long thing that runs, with the time that is left, on standard error.

On a terminal the bars move; elsewhere there is a plain line every few seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Bars:
    """``with Bars() as bars``; each ``bars.add(name)`` is a callback for (what, fraction)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._moving = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                auto_refresh=False,  # a drawing thread would disturb what is being measured
            )
            if self._console.is_terminal
            else None
        )
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        if self._moving is not None:
            self._moving.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._moving is not None:
            self._moving.stop()

    def add(self, name: str) -> Callable[[str, float], None]:
        """A new bar; its callback may be called from any thread, as often as one likes."""
        if self._moving is not None:
            return self._add_moving(name, self._moving)
        started = time.monotonic()
        due = started + PLAIN_EVERY_S

        def tell(what: str, fraction: float) -> None:
            nonlocal due
            now = time.monotonic()
            with self._lock:
                if now < due or not fraction > 0:
                    return
                due = now + PLAIN_EVERY_S
            left_s = (now - started) / fraction * (1 - fraction)
            print(f"{name}: {what}  {fraction:.0%}  {left_s:.0f} s left", file=sys.stderr)

        return tell

    def _add_moving(self, name: str, moving: Progress) -> Callable[[str, float], None]:
        task = moving.add_task(name, total=1.0)
        due = 0.0

        def tell(what: str, fraction: float) -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due or fraction >= 1:
                due = now + 0.2
                moving.update(task, completed=fraction, description=f"{name}: {what}", refresh=True)

        return tell
