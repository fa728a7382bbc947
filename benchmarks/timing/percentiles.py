"""Percentiles as measured values, and how many samples it takes to state one.

A percentile p of n sorted samples is element n - 1 - floor((1 - p/100) n), without interpolation
(the definition of NVIDIA's trtexec): a latency that was really measured, never a mean of two.

MLPerf does not take the measured percentile but an upper confidence bound of the true one.  With t the
greatest number for which P(Binomial(n, 1 - p/100) <= t) <= 1 - c, c = 0.99, it is the t-th largest of
n samples: t - 1 are discarded.  With t < 1 nothing is stated: p90 takes 64 samples, p99 takes 662.
https://github.com/mlcommons/inference/blob/master/loadgen/early_stopping.cc
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.errors import ConfigError

CONFIDENCE = 0.99


@dataclass(frozen=True)
class EarlyStopping:
    """MLPerf's estimate: with ``confidence`` the true percentile is at most ``estimate``."""

    percentile: float
    estimate: float
    discarded: int
    confidence: float = CONFIDENCE

    def to_dict(self) -> dict[str, Any]:
        return {
            "percentile": self.percentile,
            "estimate": self.estimate,
            "discarded": self.discarded,
            "confidence": self.confidence,
        }


def rank(percent: float, n: int) -> int:
    """Index of a percentile among n sorted samples."""
    # Rounding before the floor: (1 - 90/100) * 10 is 0.9999... in binary.
    return n - 1 - math.floor(round((100 - percent) * n / 100, 9))


def samples_needed(percent: float) -> int:
    """Fewest samples from which a percentile is stated.

    >>> [samples_needed(p) for p in (50, 90, 95, 99, 99.9)]
    [11, 64, 130, 662, 6636]
    """
    above = _share_above(percent)
    fewest, n = 1, 2
    while _chance_of_at_most(1, n, above) > 1 - CONFIDENCE:
        fewest, n = n, 2 * n
    while n - fewest > 1:
        middle = (fewest + n) // 2
        enough = _chance_of_at_most(1, middle, above) <= 1 - CONFIDENCE
        fewest, n = (fewest, middle) if enough else (middle, n)
    return n


def early_stopping(samples_sorted: np.ndarray, percent: float) -> EarlyStopping | None:
    """The early-stopping estimate from sorted samples, ``None`` where they are too few."""
    above, n = _share_above(percent), len(samples_sorted)
    t, too_many = 0, math.ceil(above * n) + 1
    while too_many - t > 1:
        middle = (t + too_many) // 2
        if _chance_of_at_most(middle, n, above) <= 1 - CONFIDENCE:
            t = middle
        else:
            too_many = middle
    return EarlyStopping(percent, float(samples_sorted[n - t]), t - 1) if t else None


def _share_above(percent: float) -> float:
    if not 0 < percent < 100:
        raise ConfigError(f"percentile is {percent}; it must lie between 0 and 100, both excluded")
    return (100 - percent) / 100


def _chance_of_at_most(successes: int, trials: int, chance: float) -> float:
    """P(Binomial(trials, chance) <= successes), from ratios of neighbouring terms, in logarithms."""
    if successes >= trials:
        return 1.0
    k = np.arange(1, successes + 1)
    ratios = np.log((trials - k + 1) / k) + math.log(chance) - math.log1p(-chance)
    terms = trials * math.log1p(-chance) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(np.exp(terms).sum())
