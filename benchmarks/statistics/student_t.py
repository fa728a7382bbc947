"""Student's t for whole degrees of freedom: P(|T| <= t) exactly, and the t that holds a share.

With theta = atan(t / sqrt(f)) and c = cos(theta) (Abramowitz, Stegun 1964, 26.7.3 and 26.7.4):

    f odd     2/pi (theta + sin(theta) (c + 2/3 c^3 + ... + (2 4 .. (f-3)) / (3 5 .. (f-2)) c^(f-2)))
    f even    sin(theta) (1 + 1/2 c^2 + ... + (1 3 .. (f-3)) / (2 4 .. (f-2)) c^(f-2))
"""

from __future__ import annotations

import math
import statistics
from typing import Sequence, Tuple

Interval = Tuple[float, float]


def within(t: float, freedom: int) -> float:
    """P(|T| <= t), for t >= 0 and at least one degree of freedom.

    >>> round(within(1.0, 1), 4), round(within(12.7062, 1), 4), round(within(2.7764, 4), 4)
    (0.5, 0.95, 0.95)
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (k - 1) / k * cosine * cosine
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def quantile(share: float, freedom: int) -> float:
    """The t with P(|T| <= t) = ``share``, for a share in [0, 1).

    >>> [round(quantile(0.95, f), 3) for f in (1, 2, 4, 30)]
    [12.706, 4.303, 2.776, 2.042]
    """
    low, high = 0.0, 1.0
    while within(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def mean_interval(values: Sequence[float], share: float = 0.95) -> Interval | None:
    """The interval of the mean of independent normal values; None for fewer than two.

    >>> mean_interval([1.0]), mean_interval([1.0, 3.0], 0.5)
    (None, (1.0, 3.0))
    """
    n = len(values)
    if n < 2:
        return None
    middle = statistics.mean(values)
    half = quantile(share, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return middle - half, middle + half
