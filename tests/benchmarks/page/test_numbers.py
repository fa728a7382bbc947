"""Numbers in words: digits, signs, units."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.page import facts, latency_figures, numbers, pareto
from benchmarks.page.charts import svg
from benchmarks.page.comparison import sentence


@pytest.mark.parametrize("module", [numbers, facts, pareto, latency_figures, svg])
def test_the_examples_in_the_documentation_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def plain(text: str) -> str:
    return text.replace(numbers.THIN, " ").replace(numbers.MINUS, "-")


@given(st.floats(1e-4, 1e9), st.integers(2, 5))
def test_digits_keep_so_many(value: float, significant: int) -> None:
    shown = float(plain(numbers.digits(value, significant)).replace(" ", ""))
    assert math.isclose(shown, value, rel_tol=10.0 ** (1 - significant))


@given(st.floats(1e-9, 1e12))
def test_prefixes_keep_the_value(value: float) -> None:
    size = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}
    figures, unit = plain(numbers.scaled(value, "J")).rsplit(" ", 1)
    shown = float(figures.replace(" ", "")) * size[unit[:-1]]
    assert math.isclose(shown, value, rel_tol=0.006)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 J"),
        (0.9996, "1.00 J"),
        (999.6, "1.00 kJ"),
        (1e-12, "0.00100 nJ"),
        (-0.002, "-2.00 mJ"),
    ],
)
def test_prefixes_at_their_ends(value: float, shown: str) -> None:
    assert plain(numbers.scaled(value, "J")) == shown


def test_what_is_not_known_is_a_dash() -> None:
    shows = (numbers.digits, numbers.grouped, numbers.percent, numbers.share, numbers.points,
             numbers.milliseconds, numbers.duration)  # fmt: skip
    assert {show(None) for show in shows} == {numbers.UNKNOWN}
    assert numbers.scaled(None, "J") == numbers.UNKNOWN
    assert numbers.times(None, "faster", "slower") == numbers.UNKNOWN
    assert numbers.times(0.0, "faster", "slower") == numbers.UNKNOWN
    assert numbers.within(None) == ""


def test_points_and_percent_are_told_apart() -> None:
    assert plain(numbers.points(-0.004)) == "±0.00 points"
    assert plain(numbers.points(1.5)) == "+1.50 points"
    assert plain(numbers.percent(87.6)) == "87.60 %"
    assert plain(numbers.share(0.456)) == "45.6 %"


@pytest.mark.parametrize("value", ["3", None, True, math.nan, math.inf, [1]])
def test_only_finite_numbers_are_known(value: object) -> None:
    assert numbers.known({"a": {"b": value}}, "a", "b") is None
    assert numbers.known({"a": value}, "a", "b") is None
    assert numbers.interval({"a": [1.0, value]}, "a") is None


def test_known_numbers_and_intervals() -> None:
    assert numbers.known({"a": {"b": 3}}, "a", "b") == 3.0
    assert numbers.interval({"a": [1, 2.5]}, "a") == (1.0, 2.5)
    assert numbers.interval({"a": [1]}, "a") is None
    assert numbers.ratio(1.0, 0.0) is None
    assert numbers.ratio(None, 2.0) is None
    assert numbers.ratio(3.0, 2.0) == 1.5


def test_the_interval_of_a_loss_is_of_how_many_times_slower() -> None:
    assert numbers.change_interval({"p50": [1.5, 2.0]}, "p50") == (1.5, 2.0)
    assert numbers.change_interval({"p50": [0.4, 0.5]}, "p50") == (2.0, 2.5)
    assert numbers.change_interval({"p50": [0.9, 1.2]}, "p50") == (0.9, 1.2)
    assert numbers.change_interval({}, "p50") is None


def test_the_sentence_names_what_stayed() -> None:
    network = {"top1": 90.0, "latency_ms": {"p50": 1.0}, "size_bytes": 8.0, "macs": 4.0}
    said = sentence(network, {**network, "size_bytes": 4.0})
    assert said == (
        "The student runs as fast, is 2.00\u202f× smaller and has as many MACs, "
        "at 90.00\u202f% top-1: as its teacher."
    )
