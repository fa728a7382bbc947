"""Order statistics by definition, MLPerf's bound by exact arithmetic and by LoadGen itself."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing.percentiles import early_stopping, rank, samples_needed
from deploy.errors import ConfigError


def at_most(successes: int, trials: int, percent: float) -> Fraction:
    """P(Binomial(trials, 1 - percent / 100) <= successes), exactly."""
    above = (100 - Fraction(str(percent))) / 100
    return sum(
        (
            math.comb(trials, k) * above**k * (1 - above) ** (trials - k)
            for k in range(successes + 1)
        ),
        Fraction(0),
    )


@pytest.mark.parametrize(
    ("percent", "needed"), [(50, 11), (90, 64), (95, 130), (99, 662), (99.9, 6636)]
)
def test_samples_needed_is_the_fewest(percent: float, needed: int) -> None:
    assert samples_needed(percent) == needed
    assert at_most(1, needed, percent) <= Fraction(1, 100) < at_most(1, needed - 1, percent)


@given(st.integers(2, 400), st.sampled_from([50.0, 75.0, 90.0, 97.0]))
def test_early_stopping_is_the_tightest_bound(n: int, percent: float) -> None:
    stopped = early_stopping(np.arange(float(n)), percent)
    if stopped is None:
        assert at_most(1, n, percent) > Fraction(1, 100)
        return
    t = stopped.discarded + 1
    assert at_most(t, n, percent) <= Fraction(1, 100) < at_most(t + 1, n, percent)
    assert stopped.estimate == n - t  # the t-th largest of 0 .. n - 1
    assert stopped.estimate >= rank(percent, n)


def test_the_bound_covers_the_true_percentile() -> None:
    rng = np.random.default_rng(0)
    true_p90 = math.log(10)  # of an exponential distribution
    runs = [early_stopping(np.sort(rng.exponential(size=200)), 90) for _ in range(400)]
    covered = sum(run is not None and run.estimate >= true_p90 for run in runs)
    assert covered >= 390


@pytest.mark.parametrize("percent", [0, 100, -1, math.nan])
def test_percentiles_lie_inside(percent: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 100"):
        samples_needed(percent)
    with pytest.raises(ConfigError, match="between 0 and 100"):
        early_stopping(np.ones(10), percent)


@pytest.mark.parametrize(("percent", "n", "place"), [(50, 100, 49), (90, 10, 8), (99, 100, 98)])
def test_rank(percent: float, n: int, place: int) -> None:
    assert rank(percent, n) == place
