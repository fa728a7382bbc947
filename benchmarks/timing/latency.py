"""How long a session takes for one call: warm up, time, keep every sample.

Percentiles are those of ``percentiles``; sessions take turns as ``interleaving`` says.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np

from benchmarks.timing.interleaving import Clock, Floors, interleave
from benchmarks.timing.percentiles import EarlyStopping, early_stopping, rank, samples_needed
from deploy.sessions.session import Feeds, Session

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
NOISY_COV = 0.025


@dataclass(frozen=True, eq=False)
class Latency:
    """Raw samples of one session in milliseconds, in the order in which they were taken.

    ``round_lengths`` says how many of them each turn gave, ``opening_rounds`` how many turns each
    opening of the session had; empty where nothing took turns.
    """

    samples_ms: Sequence[float] | np.ndarray
    round_lengths: tuple[int, ...] = ()
    opening_rounds: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        return len(self.samples_ms)

    @functools.cached_property
    def sorted_ms(self) -> np.ndarray:
        return np.sort(np.asarray(self.samples_ms, np.float64))

    def percentile(self, percent: float) -> float | None:
        """The order statistic in ms, or ``None`` where there are too few samples to state it."""
        if self.n < samples_needed(percent):
            return None
        return float(self.sorted_ms[rank(percent, self.n)])

    def early_stopping(self, percent: float) -> EarlyStopping | None:
        """MLPerf's upper bound of the true percentile."""
        return early_stopping(self.sorted_ms, percent)

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
        return float(np.mean(self.samples_ms)) if self.n else math.nan

    @property
    def cov(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        if self.n < 2:
            return math.nan
        mean = self.mean_ms
        return float(np.std(self.samples_ms, ddof=1)) / mean if mean > 0 else math.nan

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
            record["samples"] = [float(ms) for ms in self.samples_ms]
        return record


def measure(session: Session, feeds: Feeds, **settings: Any) -> Latency:
    """Latency of one session; settings as in ``measure_interleaved``."""
    return measure_interleaved({session.name: session}, feeds, **settings)[session.name]


def measure_interleaved(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    *,
    clock_ns: Clock = time.perf_counter_ns,
    **floors: Any,
) -> dict[str, Latency]:
    """Latencies of several sessions on the same feeds, taken in turns; ``floors`` as in ``Floors``.

    Raises:
        ConfigError: No session, or a floor that is not positive.
    """
    calls = {name: functools.partial(each.run, feeds) for name, each in sessions.items()}
    taken = interleave(calls, Floors(**floors), clock_ns=clock_ns)
    return {name: Latency(taken.times_ms(name), taken.round_lengths(name)) for name in sessions}
