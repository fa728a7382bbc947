"""Spearman's rank correlation, how likely chance alone gives as much, and what the probes leave open.

    rho = corr(rank(x), rank(y)), ties at their mean rank                   (Spearman 1904)

The p-value is two-sided, from permutations of y: all of them for up to 7 values, else 20,000 drawn ones
(with the seen order counted in). Axes: L layers, K probe batches, R replicates.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

ALL_ORDERS_UP_TO, DRAWN, REPLICATES = 7, 20_000, 2_000


@dataclass(frozen=True)
class Correlation:
    """How far one thing grows with another.

    Attributes:
        rho: In [-1, 1]; NaN where one of the two does not vary.
        p: Share of the orders of chance in which rho is as far from 0.
        interval: 95 % of rho, from resampled probe batches; None where there were none.
        n: Layers.
    """

    rho: float
    p: float
    interval: tuple[float, float] | None
    n: int

    @property
    def finding(self) -> str:
        """``grows``, ``falls``, or that neither can be shown: at 5 %, and by the interval where one is.

        Fewer than five have no order that chance would not give in one of twelve; where the interval says
        that theirs is no noise, that is said of these alone.
        """
        if math.isnan(self.rho):
            return "no trend can be shown"
        if self.interval is not None and self.interval[0] <= 0 <= self.interval[1]:
            return "no trend can be shown"
        direction = "grows" if self.rho > 0 else "falls"
        if self.interval is not None and 2 / math.factorial(self.n) > 0.05:
            return f"{direction} over these {self.n}, which are too few to speak of others"
        return direction if self.p <= 0.05 else "no trend can be shown"


def ranks(values_L: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties at their mean.

    >>> ranks(np.array([0.3, 0.1, 0.3])).tolist()
    [1.5, 0.0, 1.5]
    """
    below_LL = values_L[:, None] > values_L[None, :]
    same_LL = values_L[:, None] == values_L[None, :]
    ranked: np.ndarray = below_LL.sum(1) + (same_LL.sum(1) - 1) / 2
    return ranked


def spearman(x_L: np.ndarray, y_L: np.ndarray) -> float:
    """Rank correlation of two sequences; NaN where one of them does not vary."""
    a_L, b_L = (ranks(np.asarray(values)) - (len(values) - 1) / 2 for values in (x_L, y_L))
    scale = math.sqrt(float(a_L @ a_L) * float(b_L @ b_L))
    return float(a_L @ b_L) / scale if scale > 0 else math.nan


def correlate(x_L: np.ndarray, samples_LK: np.ndarray, seed: int = 0) -> Correlation:
    """Rank correlation of ``x`` with the means of the samples.

    Args:
        samples_LK: What each probe batch says of each layer; one column leaves no interval.
    """
    y_L = samples_LK.mean(1)
    rho = spearman(x_L, y_L)
    if math.isnan(rho):
        return Correlation(rho, 1.0, None, len(y_L))
    rng = np.random.default_rng(seed)
    return Correlation(rho, _p_value(x_L, y_L, rho, rng), _interval(x_L, samples_LK, rng), len(y_L))


def _p_value(x_L: np.ndarray, y_L: np.ndarray, rho: float, rng: np.random.Generator) -> float:
    n = len(y_L)
    a_L, b_L = (ranks(values) - (n - 1) / 2 for values in (x_L, y_L))
    scale = math.sqrt(float(a_L @ a_L) * float(b_L @ b_L))
    if n <= ALL_ORDERS_UP_TO:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = rng.permuted(np.tile(np.arange(n), (DRAWN, 1)), axis=1)
    as_far = int((np.abs(b_L[orders] @ a_L) / scale >= abs(rho) - 1e-12).sum())
    drawn = n > ALL_ORDERS_UP_TO
    return (as_far + drawn) / (len(orders) + drawn)


def _interval(
    x_L: np.ndarray, samples_LK: np.ndarray, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Percentiles over resampled probe batches (Efron 1979)."""
    probes = samples_LK.shape[1]
    if probes < 2:
        return None
    found = [
        spearman(x_L, samples_LK[:, rng.integers(0, probes, probes)].mean(1))
        for _ in range(REPLICATES)
    ]
    known = [value for value in found if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
