"""Rank correlation: against numpy on ranks, exact p-values by hand, and ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.analysis.rank_correlation import Correlation, correlate, ranks, spearman

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=3, max_size=12)


@given(VALUES)
def test_ranks_are_those_of_sorting_with_ties_at_their_mean(values: list[float]) -> None:
    found = ranks(np.array(values))
    ordered = sorted(values)
    for value, rank in zip(values, found, strict=True):
        places = [place for place, other in enumerate(ordered) if other == value]
        assert rank == pytest.approx(sum(places) / len(places))


@given(st.permutations(list(range(9))))
def test_without_ties_rho_is_spearmans_formula(order: list[int]) -> None:
    y = np.array(order, dtype=np.float64)
    squares = ((np.arange(9) - y) ** 2).sum()
    assert spearman(np.arange(9.0), y) == pytest.approx(1 - 6 * squares / (9 * 80))


def test_with_ties_rho_is_the_correlation_of_ranks() -> None:
    x, y = np.array([1.0, 2, 2, 3, 9]), np.array([5.0, 5, 1, 7, 7])
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])


def test_exact_p_value_counts_all_orders() -> None:
    # Of the 24 orders of four values only two have |rho| = 1.
    found = correlate(np.arange(4.0), np.array([[1.0], [2.0], [3.0], [4.0]]))
    assert found.rho == 1.0
    assert found.p == pytest.approx(2 / 24)
    assert found.finding == "no trend can be shown"
    assert found.interval is None


def test_many_layers_show_a_trend_and_its_direction() -> None:
    noise = np.random.default_rng(0).normal(size=(20, 8))
    up = np.arange(20.0)[:, None] + noise
    found = correlate(np.arange(20.0), up)
    assert found.finding == "grows" and found.p < 0.001
    assert found.interval is not None and found.interval[0] <= found.rho <= found.interval[1] + 1e-9
    assert correlate(np.arange(20.0), -up).finding == "falls"
    assert correlate(np.arange(20.0), noise).finding == "no trend can be shown"


def test_what_does_not_vary_has_no_correlation() -> None:
    found = correlate(np.arange(5.0), np.ones((5, 3)))
    assert math.isnan(found.rho) and found.p == 1.0
    assert found.finding == "no trend can be shown"


@pytest.mark.parametrize(
    ("p", "interval", "finding"),
    [
        (0.01, (0.2, 0.9), "grows"),
        (0.01, None, "grows"),
        (0.01, (-0.1, 0.9), "no trend can be shown"),  # other probe batches might say otherwise
        (0.2, (0.2, 0.9), "no trend can be shown"),
    ],
)
def test_a_trend_has_to_hold_over_layers_and_over_probes(
    p: float, interval: tuple[float, float] | None, finding: str
) -> None:
    assert Correlation(0.5, p, interval, 26).finding == finding


@pytest.mark.parametrize(("sign", "direction"), [(1.0, "grows"), (-1.0, "falls")])
def test_four_in_a_certain_order_are_said_to_be_few(sign: float, direction: str) -> None:
    """No order of four is rarer than 2 in 24, so the p-value alone could never show anything."""
    noise = 0.01 * np.random.default_rng(0).normal(size=(4, 8))
    found = correlate(np.arange(4.0), sign * np.arange(4.0)[:, None] + noise)
    assert found.p == pytest.approx(2 / 24)
    assert found.finding == f"{direction} over these 4, which are too few to speak of others"
    unsure = Correlation(sign, 2 / 24, (-0.2, 1.0), 4)
    assert unsure.finding == "no trend can be shown"
    assert Correlation(sign, 2 / 120, None, 5).finding == direction
