"""Axes: ticks are round, ascending and inside; positions keep the order of values."""

from __future__ import annotations

import doctest
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.page.charts import scale as module
from benchmarks.page.charts.scale import Scale, limits, log_ticks, nice_ticks, tick_labels

finite = st.floats(-1e9, 1e9, allow_nan=False)
positive = st.floats(1e-6, 1e9)


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(module).failed == 0


@given(finite, st.floats(1e-6, 1e9), st.integers(1, 12))
def test_linear_ticks_ascend_evenly_inside_the_limits(low: float, length: float, n: int) -> None:
    high = low + max(length, abs(low) * 1e-6)  # below that, doubles have no even steps
    length = high - low
    ticks = nice_ticks(low, high, n)
    slack = length * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert ticks == sorted(set(ticks))
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3, abs_tol=slack) for step in steps)
    assert len(ticks) <= n + 2


@given(positive, st.floats(1.02, 1e6))
def test_log_ticks_ascend_inside_the_limits(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


@given(positive, st.floats(2, 1e6), positive, positive, st.booleans())
def test_positions_keep_order_and_stay_inside(
    low: float, factor: float, a: float, b: float, log: bool
) -> None:
    scale = Scale(low, low * factor, 10, 300, log)
    inside = sorted(min(max(value, low), low * factor) for value in (a, b))
    at = [scale(value) for value in inside]
    assert 10 - 1e-6 <= at[0] <= at[1] <= 300 + 1e-6


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), max_size=5), st.booleans())
def test_limits_hold_every_usable_value_and_are_never_empty(
    values: list[float | None], log: bool
) -> None:
    usable = [v for v in values if v is not None and abs(v) < 1e300 and (v > 1e-300 or not log)]
    low, high = limits(usable, log=log)
    assert low < high
    assert all(low <= v <= high for v in usable if not log or v > 0)


def test_none_and_nan_do_not_move_the_limits() -> None:
    assert limits([1.0, None, math.nan, math.inf, 3.0]) == limits([1.0, 3.0])
    assert limits([1.0, 0.0, -5.0, 3.0], log=True) == limits([1.0, 3.0], log=True)


@pytest.mark.parametrize("log", [False, True])
def test_a_single_value_lies_inside_its_axis(log: bool) -> None:
    low, high = limits([7.0], log=log)
    assert low < 7.0 < high


def test_padding_does_not_leave_what_is_possible() -> None:
    assert limits([99.9, 100.0], within=(0, 100))[1] == 100


def test_labels_of_even_ticks_have_equal_decimals() -> None:
    assert tick_labels([87.5, 88.0, 88.5]) == ["87.5", "88.0", "88.5"]
    assert tick_labels([]) == []
