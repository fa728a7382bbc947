"""How long a session takes for one call: warm up, time, keep every sample.

A percentile p of n sorted samples is element n - 1 - floor((1 - p/100) n), without interpolation
(the definition of NVIDIA's trtexec): a latency that was really measured, never a mean of two.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping

from deploy.errors import ConfigError
from deploy.sessions.session import Feeds, Session

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
NOISY_COV = 0.025
_CONFIDENCE = 0.99


def samples_needed(percent: float) -> int:
    """Fewest samples from which a percentile is stated.

    With fewer than ln(1 - c) / ln(p) samples even the largest one lies below the true p-quantile
    with a chance above 1 - c (c = 0.99): the data cannot bound it.

    >>> [samples_needed(p) for p in PERCENTILES]
    [7, 44, 90, 459, 4603]
    """
    if not 0 < percent < 100:
        raise ConfigError(f"percentile is {percent}; it must lie between 0 and 100, both excluded")
    return math.ceil(math.log(1 - _CONFIDENCE) / math.log(percent / 100))


@dataclass(frozen=True)
class Latency:
    """Raw samples of one session in milliseconds, in the order in which they were taken."""

    samples_ms: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.samples_ms)

    def percentile(self, percent: float) -> float | None:
        """The order statistic in ms, or ``None`` where there are too few samples to state it."""
        if self.n < samples_needed(percent):
            return None
        # Rounding before the floor: (1 - 90/100) * 10 is 0.9999... in binary.
        above = math.floor(round((100 - percent) * self.n / 100, 9))
        return sorted(self.samples_ms)[self.n - 1 - above]

    @property
    def p50(self) -> float | None:
        return self.percentile(50)

    @property
    def p90(self) -> float | None:
        return self.percentile(90)

    @property
    def p99(self) -> float | None:
        return self.percentile(99)

    @property
    def mean_ms(self) -> float:
        return math.fsum(self.samples_ms) / self.n if self.n else math.nan

    @property
    def cov(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        if self.n < 2:
            return math.nan
        mean = self.mean_ms
        variance = math.fsum((ms - mean) ** 2 for ms in self.samples_ms) / (self.n - 1)
        return math.sqrt(variance) / mean if mean > 0 else math.nan

    @property
    def noisy(self) -> bool:
        """Whether the samples scatter so much that small differences mean nothing."""
        return not self.cov <= NOISY_COV

    def to_dict(self, samples: bool = False) -> dict[str, Any]:
        """Plain numbers for a report; a percentile without enough samples is ``None``."""
        record: dict[str, Any] = {
            f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES
        }
        record.update(n=self.n, mean=self.mean_ms, cov=self.cov)
        if samples:
            record["samples"] = list(self.samples_ms)
        return record


def measure(session: Session, feeds: Feeds, **settings: Any) -> Latency:
    """Latency of one session; settings as in ``measure_interleaved``."""
    return measure_interleaved({session.name: session}, feeds, **settings)[session.name]


def measure_interleaved(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    *,
    warm_up_s: float = 0.2,
    at_least_s: float = 3.0,
    at_least: int = 500,
    block_s: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Latencies of several sessions on the same feeds, taken in alternating blocks of one run.

    A machine that warms up, throttles or gets a noisy neighbour does so to all of them; every other
    round runs in reverse order, so that a steady drift cancels.  The first call of a block is not
    counted: its caches still hold the other session.  The run ends when *each* session has been
    timed for ``at_least_s`` seconds and ``at_least`` times.

    Raises:
        ConfigError: No session, or a floor that is not positive.
    """
    if not sessions:
        raise ConfigError("nothing to measure: no session was given; give at least one")
    for setting, value in (
        ("at_least", at_least),
        ("at_least_s", at_least_s),
        ("block_s", block_s),
    ):
        if not value > 0:
            raise ConfigError(f"{setting} is {value}; it must be positive")
    calls = {
        name: _warm_up(session, feeds, warm_up_s, block_s, clock)
        for name, session in sessions.items()
    }
    samples_ms: dict[str, list[float]] = {name: [] for name in sessions}
    total_s = dict.fromkeys(sessions, 0.0)
    order = list(sessions)
    while any(total_s[name] < at_least_s or len(samples_ms[name]) < at_least for name in order):
        for name in order:
            total_s[name] += _block(sessions[name], feeds, calls[name], samples_ms[name], clock)
        order.reverse()
    return {name: Latency(tuple(taken)) for name, taken in samples_ms.items()}


def _warm_up(
    session: Session, feeds: Feeds, warm_up_s: float, block_s: float, clock: Callable[[], float]
) -> int:
    """Run for ``warm_up_s``, at least three times; the number of calls that fills a block."""
    start, calls = clock(), 0
    while calls < 3 or clock() - start < warm_up_s:
        session.run(feeds)
        calls += 1
    return max(1, round(block_s * calls / max(clock() - start, 1e-9)))


def _block(
    session: Session, feeds: Feeds, calls: int, samples_ms: list[float], clock: Callable[[], float]
) -> float:
    """Time ``calls`` calls after an untimed one; seconds spent in the timed ones."""
    run, total_s = session.run, 0.0
    run(feeds)
    for _ in range(calls):
        start = clock()
        run(feeds)
        spent_s = clock() - start
        samples_ms.append(spent_s * 1e3)
        total_s += spent_s
    return total_s
