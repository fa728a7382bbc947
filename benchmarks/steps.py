"""How far a benchmark run is: the fraction of a step as the fraction of the whole; and its interrupts."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any, Callable, Iterator

from benchmarks.energy.measuring import PROFILES as ENERGY_PROFILES
from benchmarks.records.request import Request
from benchmarks.timing import scenarios

Progress = Callable[[str, float], None]


class Steps:
    """Turns the fraction of a step into the fraction of the run, by how long steps should take."""

    def __init__(self, progress: Progress | None, request: Request) -> None:
        self._progress = progress
        floors = scenarios.floors(request)
        models = len(request.models)
        trials = 6 if request.bound_ms is not None else 1
        planned = {
            "loading": 0.5,
            request.scenario: models * (floors.warm_up_s + trials * floors.at_least_s),
            "energy": ENERGY_PROFILES[request.profile].duration_s(models) if request.power else 0.0,
            "loadgen": 7.0 * models if request.loadgen else 0.0,
            "layers": 1.0 * models if request.layers and request.provider == "ort-cpu" else 0.0,
            "statistics": 1.0 * models,
            "done": 0.0,
        }
        total_s = sum(planned.values())
        self._share = {name: seconds / total_s for name, seconds in planned.items()}
        self._name, self._before = "loading", 0.0

    def enter(self, name: str) -> None:
        names = list(self._share)
        self._name = name
        self._before = sum(self._share[each] for each in names[: names.index(name)])
        self.part(0.0)

    def part(self, fraction: float) -> None:
        if self._progress is not None:
            over = self._before + self._share[self._name] * fraction
            self._progress(self._name, min(over, 1.0))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does; only the main thread may listen to signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
