"""Calls timed in turns: blocks of one, blocks of the other, until each had enough of both floors.

A machine that warms up, throttles or gets a noisy neighbour does so to all of them; every other round
runs in reverse order, so that a steady drift cancels.  The first call of a block is not counted: its
caches still hold the other session.  Python's garbage collector is off inside a block.

What timing itself costs is measured in the same run: every round also times calls of nothing, and
makes as many without timing them.  ``Overhead`` is the difference per call.
"""

from __future__ import annotations

import array
import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping

import numpy as np

from deploy.errors import ConfigError

Call = Callable[[], Any]
Clock = Callable[[], int]
_EMPTY_CALLS = 500


@dataclass(frozen=True)
class Overhead:
    """Of one timed call: what the loop takes beside the call, and what an empty call measures."""

    loop_us: float
    reported_us: float

    def to_dict(self) -> dict[str, float]:
        return {"overhead_us": self.loop_us, "reported_us": self.reported_us}


@dataclass
class Taken:
    """What was measured so far, by name; whole rounds only, so that an interrupt leaves pairs."""

    rounds_ns: dict[str, list[array.array[int]]] = field(default_factory=dict)
    openings: list[int] = field(default_factory=list)
    warm_up: dict[str, tuple[int, float]] = field(default_factory=dict)
    empty_ns: list[tuple[float, float]] = field(default_factory=list)

    def times_ms(self, name: str) -> np.ndarray:
        rounds = self.rounds_ns[name][: sum(self.openings)]
        return np.concatenate([np.asarray(block) for block in rounds] or [np.empty(0)]) / 1e6

    def round_lengths(self, name: str) -> tuple[int, ...]:
        return tuple(len(block) for block in self.rounds_ns[name][: sum(self.openings)])

    @property
    def opening_rounds(self) -> tuple[int, ...]:
        """Rounds of each opening; one that did not come to a round is left out."""
        return tuple(rounds for rounds in self.openings if rounds)

    @property
    def overhead(self) -> Overhead | None:
        if not self.empty_ns:
            return None
        extra, reported = zip(*self.empty_ns)
        return Overhead(statistics.median(extra) / 1e3, statistics.median(reported) / 1e3)


@dataclass(frozen=True)
class Floors:
    """How long and how often each session is warmed up and timed; both floors hold.

    Raises:
        ConfigError: One that must be positive is not.
    """

    at_least_s: float = 3.0
    at_least: int = 500
    warm_up_s: float = 0.2
    warm_up: int = 10
    block_s: float = 0.02

    def __post_init__(self) -> None:
        for setting in ("at_least", "at_least_s", "block_s"):
            if not getattr(self, setting) > 0:
                raise ConfigError(f"{setting} is {getattr(self, setting)}; it must be positive")


def interleave(
    calls: Mapping[str, Call],
    floors: Floors,
    *,
    taken: Taken | None = None,
    clock_ns: Clock = time.perf_counter_ns,
    progress: Callable[[float], None] | None = None,
) -> Taken:
    """Time every call in turns until each was timed for ``at_least_s`` and ``at_least`` times.

    ``taken`` grows by whole rounds, so that whoever interrupts finds what was measured until then;
    given again with newly opened sessions, it is continued as another opening.
    ``progress`` hears the fraction that is over.

    Raises:
        ConfigError: There is nothing to call.
    """
    if not calls:
        raise ConfigError("nothing to measure: no session was given; give at least one")
    taken = Taken() if taken is None else taken
    size: dict[str, int] = {}
    for name, call in calls.items():
        warmed, spent_s = _warm_up(call, floors, clock_ns)
        before = taken.warm_up.get(name, (0, 0.0))
        taken.warm_up[name] = (before[0] + warmed, before[1] + spent_s)
        taken.rounds_ns.setdefault(name, [])
        size[name] = max(1, round(floors.block_s * warmed / max(spent_s, 1e-9)))
    total_ns, count = dict.fromkeys(calls, 0), dict.fromkeys(calls, 0)
    taken.openings.append(0)
    order, over = list(calls), 0.0
    while over < 1:
        blocks = {}
        for name in order:
            calls[name]()
            blocks[name] = time_block(calls[name], size[name], clock_ns)
        for name, block in blocks.items():
            taken.rounds_ns[name].append(block)
            total_ns[name] += sum(block)
            count[name] += len(block)
        taken.openings[-1] += 1
        taken.empty_ns.append(_time_nothing(clock_ns))
        order.reverse()
        over = min(
            min(total_ns[name] / (floors.at_least_s * 1e9), count[name] / floors.at_least)
            for name in order
        )
        if progress is not None:
            progress(min(over, 1.0))
    return taken


def time_block(call: Call, calls: int, clock_ns: Clock = time.perf_counter_ns) -> array.array[int]:
    """Nanoseconds of each of ``calls`` calls in a row."""
    times_ns = array.array("q", bytes(8 * calls))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(calls):
            start = clock_ns()
            call()
            times_ns[index] = clock_ns() - start
    finally:
        if collecting:
            gc.enable()
    return times_ns


def _warm_up(call: Call, floors: Floors, clock_ns: Clock) -> tuple[int, float]:
    """Calls and seconds of the warm-up: both floors, and three calls in any case."""
    start, calls, enough = clock_ns(), 0, max(3, floors.warm_up)
    while calls < enough or clock_ns() - start < floors.warm_up_s * 1e9:
        call()
        calls += 1
    return calls, (clock_ns() - start) / 1e9


def measure_overhead(clock_ns: Clock = time.perf_counter_ns, rounds: int = 20) -> Taken:
    """The overhead alone, where nothing else took turns."""
    return Taken(empty_ns=[_time_nothing(clock_ns) for _ in range(rounds)])


def nothing() -> None:
    """An empty session."""


def _time_nothing(clock_ns: Clock) -> tuple[float, float]:
    """Nanoseconds per call that timing adds to a bare loop, and that an empty call measures."""
    start = clock_ns()
    times_ns = time_block(nothing, _EMPTY_CALLS, clock_ns)
    timed = clock_ns() - start
    start = clock_ns()
    for _ in range(_EMPTY_CALLS):
        nothing()
    bare = clock_ns() - start
    return (timed - bare) / _EMPTY_CALLS, float(statistics.median(times_ns))
