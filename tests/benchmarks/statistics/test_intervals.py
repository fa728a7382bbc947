"""Intervals against Monte Carlo truth; what hits both cancels; a model equals itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics.intervals import (
    compare_gains,
    compare_means,
    compare_percentiles,
    mean_interval,
    percentile_interval,
)
from benchmarks.timing.samples import Samples
from deploy.errors import DataError

FEW = 120  # replicates


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    """Correlated noise of unit variance: correlation phi ** k at lag k."""
    noise = rng.normal(size=n) * math.sqrt(1 - phi**2)
    noise[0] /= math.sqrt(1 - phi**2)
    made = np.empty(n)
    level = 0.0
    for place, value in enumerate(noise):
        level = phi * level + value
        made[place] = level
    return made


def interleaved(
    ratio: float, rng: np.random.Generator, openings: int = 10, rounds: int = 5, calls: int = 8
) -> tuple[Samples, Samples]:
    """Two sessions in turns: noise, outliers, a machine that drifts, and luck at each opening.

    Latencies scatter by 10 %, rounds by 5 % for both alike, and an opening makes 1 % for each alone.
    """
    n = openings * rounds
    common = 1 + 0.05 * ar1(n, 0.8, rng) + 0.1 * np.linspace(0, 1, n)
    made = []
    for level in (1.0, ratio):
        luck = np.repeat(1 + 0.01 * rng.normal(size=openings), rounds)
        values = level * (luck * common)[:, None] * (1 + 0.1 * np.abs(rng.normal(size=(n, calls))))
        values[rng.random(values.shape) < 0.01] *= 8
        made.append(Samples.of(values.ravel(), [calls] * n, [rounds] * openings))
    return made[0], made[1]


@pytest.mark.parametrize(("phi", "fewest"), [(0.0, 90), (0.8, 85)])
def test_the_interval_covers_the_true_median(phi: float, fewest: int) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for run in range(100):
        low, high = percentile_interval(
            Samples.of(10 + ar1(400, phi, rng)), 50, replicates=FEW, seed=run
        )
        covered += low <= 10 <= high
    assert covered >= fewest


def test_correlated_noise_widens_the_interval_as_much_as_it_should() -> None:
    """Against the spread of the median over independent runs."""
    rng = np.random.default_rng(2)
    widths, truth = {}, {}
    for phi in (0.0, 0.8):
        medians = [np.median(ar1(600, phi, rng)) for _ in range(300)]
        truth[phi] = 2 * 1.96 * np.std(medians)
        spans = [
            percentile_interval(Samples.of(10 + ar1(600, phi, rng)), 50, replicates=FEW)
            for _ in range(20)
        ]
        widths[phi] = float(np.mean([high - low for low, high in spans]))
    assert widths[0.8] > 2 * widths[0.0]
    for phi in truth:
        assert widths[phi] == pytest.approx(truth[phi], rel=0.25)


def test_a_model_against_itself() -> None:
    rng = np.random.default_rng(3)
    ratios, differences, means = 0, 0, 0
    for run in range(100):
        a, b = interleaved(1.0, rng)
        compared = compare_percentiles(a, b, 50, paired=True, replicates=FEW, seed=run)
        ratios += compared.ratio_interval[0] <= 1 <= compared.ratio_interval[1]
        differences += compared.difference_interval[0] <= 0 <= compared.difference_interval[1]
        mean = compare_means(a, b, paired=True, replicates=FEW, seed=run)
        means += mean.ratio_interval[0] <= 1 <= mean.ratio_interval[1]
    assert min(ratios, differences, means) >= 90


def test_five_percent_slower_is_found() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for run in range(100):
        a, b = interleaved(1.05, rng)
        compared = compare_percentiles(b, a, 50, paired=True, replicates=FEW, seed=run)
        found += compared.ratio_interval[0] > 1
    assert found >= 90


def test_luck_of_an_opening_is_known_only_from_openings() -> None:
    """Without them the interval takes the luck of one opening for a difference."""
    rng = np.random.default_rng(5)
    wrong = 0
    for run in range(30):
        a, b = interleaved(1.0, rng, openings=1, rounds=100)
        low, high = compare_percentiles(
            a, b, 50, paired=True, replicates=FEW, seed=run
        ).ratio_interval
        wrong += not low <= 1 <= high
    assert wrong >= 10


def test_what_hits_both_cancels_only_in_pairs() -> None:
    a, b = interleaved(1.0, np.random.default_rng(6))
    paired = compare_percentiles(a, b, 50, paired=True, replicates=FEW)
    apart = compare_percentiles(a, b, 50, paired=False, replicates=FEW)
    assert paired.ratio == apart.ratio
    widths = [high - low for low, high in (paired.ratio_interval, apart.ratio_interval)]
    assert widths[0] < 0.7 * widths[1]


def test_a_gain_survives_a_slower_machine() -> None:
    """The second run's machine is 20 % slower for both; the student's gain is the same."""
    rng = np.random.default_rng(7)
    first = interleaved(0.5, rng)
    second = tuple(
        Samples(1.2 * s.values, s.round_lengths, s.opening_rounds) for s in interleaved(0.5, rng)
    )
    plain = compare_percentiles(second[1], first[1], 50, paired=False, replicates=FEW)
    assert plain.ratio_interval[0] > 1.05
    gains = compare_gains((second[0], second[1]), first, 50, replicates=FEW)
    assert gains.ratio_interval[0] < 1 < gains.ratio_interval[1]
    assert gains.ratio == pytest.approx(1, abs=0.02)


@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=60),
    st.sampled_from([50.0, 90.0, 99.0]),
)
def test_intervals_hold_the_estimate_and_stay_positive(values: list[float], percent: float) -> None:
    samples = Samples.of(values)
    low, high = percentile_interval(samples, percent, replicates=50)
    point = np.sort(values)[len(values) - 1 - int((100 - percent) * len(values) / 100 + 1e-9)]
    assert 0 < low <= point * (1 + 1e-9)
    assert high >= point * (1 - 1e-9)
    low, high = mean_interval(samples, replicates=50)
    assert 0 < low <= np.mean(values) * (1 + 1e-9)
    assert high >= np.mean(values) * (1 - 1e-9)


@given(st.floats(0.001, 1000), st.integers(0, 5))
def test_scale_does_not_matter(scale: float, seed: int) -> None:
    a, b = interleaved(1.1, np.random.default_rng(seed), openings=4, rounds=4, calls=5)
    plain = compare_percentiles(a, b, 50, paired=True, replicates=50)
    scaled = compare_percentiles(
        *(Samples(scale * s.values, s.round_lengths, s.opening_rounds) for s in (a, b)),
        50,
        paired=True,
        replicates=50,
    )
    assert scaled.ratio == pytest.approx(plain.ratio)
    assert scaled.ratio_interval == pytest.approx(plain.ratio_interval)
    assert scaled.difference == pytest.approx(scale * plain.difference)


def test_equal_latencies_have_a_point_for_an_interval() -> None:
    samples = Samples.of([2.0] * 50)
    assert percentile_interval(samples, 90, replicates=50) == (2.0, 2.0)
    compared = compare_percentiles(samples, samples, 50, paired=True, replicates=50)
    assert (compared.ratio, compared.ratio_interval) == (1.0, (1.0, 1.0))
    assert compared.difference_interval == (0.0, 0.0)


def test_pairs_need_as_many_rounds() -> None:
    a, b = Samples.of([1.0] * 4, [2, 2]), Samples.of([1.0] * 4, [1, 1, 2])
    with pytest.raises(DataError, match="do not make pairs"):
        compare_percentiles(a, b, 50, paired=True)
