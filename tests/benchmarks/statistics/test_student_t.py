"""Student's t: against the integral of its density, and intervals against the textbook."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.statistics.student_t import mean_interval, quantile, within


def integral(t: float, freedom: int) -> float:
    """P(|T| <= t) by Simpson's rule over the density."""
    x = np.linspace(0, t, 20_001)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    y = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    weights = np.ones_like(x)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return float(2 * (weights * y).sum() * (x[1] - x[0]) / 3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 12.0])
def test_the_share_is_the_integral_of_the_density(t: float, freedom: int) -> None:
    assert within(t, freedom) == pytest.approx(integral(t, freedom), abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 7, 100])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.999])
def test_the_quantile_holds_its_share(share: float, freedom: int) -> None:
    assert within(quantile(share, freedom), freedom) == pytest.approx(share, abs=1e-12)


def test_the_interval_of_five_values_is_the_textbook_one() -> None:
    values = [0.3, -0.1, 0.4, 0.2, 0.1]
    low, high = mean_interval(values) or (0.0, 0.0)
    half = 2.776445 * np.std(values, ddof=1) / math.sqrt(5)
    assert (low, high) == pytest.approx((0.18 - half, 0.18 + half), abs=1e-6)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([1.0]) is None


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(size=(2000, 3))
    hits = [low <= 0 <= high for low, high in map(mean_interval, draws.tolist())]  # type: ignore[misc]
    assert 0.935 < np.mean(hits) < 0.965
