"""Differences between two variants, seed by seed, and what they show.

    d_s = a_s - b_s over the seeds s that both have;  mean(d) +- t(0.95, n - 1) sd(d) / sqrt(n)

The seed decides the order of the samples, their augmentation and the initial weights in both, so
what it does to both cancels. Student's t for pairs (Gosset 1908): differences are taken as independent
and normal, which two or three seeds cannot check.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.statistics.student_t import Interval, mean_interval


@dataclass(frozen=True)
class Paired:
    """``name`` minus ``baseline`` in points of top-1, by seed; never without a seed.

    Attributes:
        name: The variant.
        baseline: What it is compared with.
        by_seed: Differences on the seeds that both have.
    """

    name: str
    baseline: str
    by_seed: Mapping[int, float]

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return statistics.mean(self.by_seed.values())

    @property
    def interval(self) -> Interval | None:
        """Of the mean, 95 %; None for one seed, or where no spread was seen."""
        values = list(self.by_seed.values())
        if len(values) < 2 or statistics.pstdev(values) < 1e-9:
            return None
        return mean_interval(values)

    @property
    def better(self) -> bool:
        """Whether the interval lies above 0."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def worse(self) -> bool:
        """Whether the interval lies below 0."""
        return self.interval is not None and self.interval[1] < 0

    @property
    def finding(self) -> str:
        """What the seeds show."""
        if self.better:
            return f"{self.name} is better"
        if self.worse:
            return f"{self.name} is worse"
        if self.n == 1:
            return "one seed has no spread, so nothing can be shown; run more seeds"
        if self.interval is None:
            same = "no difference" if abs(self.mean) < 1e-9 else "the same difference"
            return f"{same} on every seed, and without a spread nothing can be shown"
        return "no difference can be shown"

    @property
    def sentence(self) -> str:
        """The verdict, e.g. ``dean - fixed: +0.12 points, 95 % [-0.10, +0.34], n = 5: ...``."""
        interval = ""
        if self.interval is not None:
            low, high = self.interval
            interval = f", 95 % [{low:+.2f}, {high:+.2f}]"
        return (
            f"{self.name} - {self.baseline}: {self.mean:+.2f} points{interval}, n = {self.n}: "
            f"{self.finding}"
        )


def paired(values: Mapping[str, Mapping[int, float]], name: str, baseline: str) -> Paired | None:
    """The comparison of two variants from their values by seed; None where no seed is in both."""
    both = sorted(set(values.get(name, {})) & set(values.get(baseline, {})))
    if not both:
        return None
    return Paired(
        name, baseline, {seed: values[name][seed] - values[baseline][seed] for seed in both}
    )
