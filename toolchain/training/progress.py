"""What a person sees while something runs: stage headings, and one live line while training.

On a terminal the line moves; elsewhere, or when asked for, there is a plain line every few seconds.
Everything goes to standard error, so that a command's result can be piped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 0.5


class Task:
    """The state of one training run as it is shown; made by ``Progress.training``."""

    def __init__(self, progress: Progress, name: str, total_steps: int, step: int) -> None:
        self._progress = progress
        self._name = name
        self._total_steps = total_steps
        self._step = step
        self._facts: dict[str, float] = {}
        self._images_per_s = 0.0
        self._started = time.monotonic()
        self._first_step = step
        self._due = self._started

    def due(self) -> bool:
        """Whether enough time has passed that ``show`` is worth its cost."""
        return time.monotonic() >= self._due

    def show(self, step: int, images_per_s: float, facts: Mapping[str, float]) -> None:
        """Show that ``step`` steps are done; ``facts`` are loss, sparsity and the like."""
        self._step, self._images_per_s = step, images_per_s
        self._facts.update(facts)
        self._due = time.monotonic() + self._progress.every_s
        self._progress.refresh(self)

    def epoch(self, epoch: float, epochs: float, facts: Mapping[str, float]) -> None:
        """Say in one lasting line how an epoch ended, e.g. with its validation."""
        self._facts.update(facts)
        text = "  ".join(_fact(name, value) for name, value in facts.items())
        self._progress.say(f"{self._name}: epoch {epoch:g}/{epochs:g}  {text}")

    def eta_s(self) -> float | None:
        """Seconds until the last step at the pace so far; None before there is a pace."""
        done = self._step - self._first_step
        if done <= 0:
            return None
        spent = time.monotonic() - self._started
        return spent / done * (self._total_steps - self._step)

    def words(self) -> list[str]:
        """The columns of the line, beside the bar."""
        eta_s = self.eta_s()
        return [
            f"{self._name}",
            f"step {self._step}/{self._total_steps}",
            f"{self._images_per_s:,.0f} images/s" if self._images_per_s else "",
            *(_fact(name, value) for name, value in self._facts.items()),
            f"ETA {duration(eta_s)}" if eta_s is not None else "",
        ]

    def line(self) -> str:
        """The line as plain text."""
        name, *rest = self.words()
        done = 100 * self._step // max(self._total_steps, 1)
        return "  ".join([f"{name}: {done:3d}%", *filter(None, rest)])

    def __rich__(self) -> Table:
        name, *rest = self.words()
        row = Table.grid(padding=(0, 2), expand=False)
        bar = ProgressBar(total=max(self._total_steps, 1), completed=self._step, width=20)
        words = Text("  ".join(filter(None, rest)), no_wrap=True, overflow="ellipsis")
        row.add_row(Text(name, style="bold"), bar, words)
        return row


class Progress:
    """Shows stages and training runs on one console.

    Args:
        plain: Lines instead of a live display; None decides by whether there is a terminal.
        quiet: Show nothing at all.
        console: Where to; standard error by default.
        every_s: Seconds between two lines or refreshes; None takes what suits the display.
    """

    def __init__(
        self,
        *,
        plain: bool | None = None,
        quiet: bool = False,
        console: Console | None = None,
        every_s: float | None = None,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._quiet = quiet
        self._plain = not self._console.is_terminal if plain is None else plain
        self._depth = 0
        self._live: Live | None = None
        usual_s = PLAIN_EVERY_S if self._plain else LIVE_EVERY_S
        self.every_s = usual_s if every_s is None else every_s

    def say(self, line: str) -> None:
        """Print one lasting line, above the live one if there is one."""
        if self._quiet:
            return
        text = "  " * self._depth + line
        if self._plain:
            print(text, file=self._console.file, flush=True)
        else:
            self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, number: int, total: int) -> Iterator[None]:
        """Put what is said inside under the heading ``[number/total] name``; headings nest."""
        started = time.monotonic()
        self.say(f"[{number}/{total}] {name}")
        self._depth += 1
        try:
            yield
            self.say(f"done in {duration(time.monotonic() - started)}")
        finally:
            self._depth -= 1

    @contextmanager
    def training(self, name: str, total_steps: int, *, step: int = 0) -> Iterator[Task]:
        """Show a training run that starts at ``step``; at most one at a time is live."""
        task = Task(self, name, total_steps, step)
        if self._plain or self._quiet or self._live is not None:
            yield task
            return
        # auto_refresh would start a thread that redraws, and takes time from training, for nothing.
        self._live = Live(task, console=self._console, auto_refresh=False, transient=True)
        try:
            with self._live:
                yield task
        finally:
            self._live = None

    def refresh(self, task: Task) -> None:
        """Draw a task that has changed."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(task, refresh=True)
        else:
            self.say(task.line())


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> duration(7.24), duration(75), duration(3725)
    ('7.2 s', '1:15', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _fact(name: str, value: float) -> str:
    return f"{name} {value:.4g}"
