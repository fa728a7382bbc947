"""Energy of several calls on one meter: idle, windows of each in turns, idle.

A sensor is slow and averages: a window lasts many of its updates, and before it opens the call
already runs for a while, so that the previous one has left the average.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

from benchmarks.energy.per_inference import energy_per_inference
from benchmarks.timing.interleaving import Call
from deploy.power.meter import PowerMeter
from deploy.sessions.affinity import pinned


@dataclass(frozen=True)
class Windows:
    """``rounds`` windows of ``window_s`` per call, each after ``settle_s``; idle for ``idle_s``."""

    window_s: float
    rounds: int
    idle_s: float
    settle_s: float = 1.0

    def duration_s(self, calls: int) -> float:
        """Of the whole measurement of so many calls."""
        return 2 * (self.idle_s + self.settle_s) + calls * self.rounds * (
            self.window_s + self.settle_s
        )


PROFILES = {
    "quick": Windows(window_s=4.0, rounds=2, idle_s=4.0),
    "standard": Windows(window_s=15.0, rounds=3, idle_s=15.0),
    "mlperf": Windows(window_s=60.0, rounds=5, idle_s=60.0, settle_s=5.0),
}


def measure_energy(
    calls: Mapping[str, Call],
    samples_per_call: int,
    meter: PowerMeter,
    windows: Windows,
    *,
    affinity: Sequence[int] = (),
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """``benchmarks.energy.per_inference``'s record for each call, per sample, and the meter's own record.

    Raises:
        DeviceError: The sensor failed.
    """
    say = progress or (lambda fraction: None)
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    counts: dict[str, list[int]] = {name: [] for name in calls}
    idle = []
    total_s, start = windows.duration_s(len(calls)), clock()
    running = True
    meter.start()
    try:
        idle.append(_idle(windows, clock, sleep))
        order = list(calls)
        with pinned(affinity):  # not the meter, which has a thread of its own since it started
            for _ in range(windows.rounds):
                for name in order:
                    _repeat(calls[name], windows.settle_s, clock)
                    span, count = _repeat(calls[name], windows.window_s, clock)
                    spans[name].append(span)
                    counts[name].append(count * samples_per_call)
                    say(min((clock() - start) / total_s, 1.0))
                order.reverse()
        sleep(windows.settle_s)  # until the last call has left the sensor's average
        idle.append(_idle(windows, clock, sleep))
        running = False
    finally:
        trace = meter.stop() if not running else _abandon(meter)
    say(1.0)
    energies = {
        name: energy_per_inference(trace, spans[name], counts[name], idle).to_dict()
        for name in calls
    }
    return energies, {**meter.describe(), "trace": trace.to_dict()}


def _abandon(meter: PowerMeter) -> Any:
    """Stop the meter after another error, which is the one to be told."""
    try:
        return meter.stop()
    except OSError:
        return None


def _idle(
    windows: Windows, clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[float, float]:
    start = clock()
    sleep(windows.idle_s)
    return start, clock()


def _repeat(
    call: Call, seconds: float, clock: Callable[[], float]
) -> tuple[tuple[float, float], int]:
    """Call for so many seconds, to the end of the last call: when, and how often."""
    start = now = clock()
    count = 0
    while now - start < seconds or not count:
        call()
        count += 1
        now = clock()
    return (start, now), count
