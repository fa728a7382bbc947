"""Latencies with their rounds and openings: thinned without losing them, refused when they do not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.timing.samples import Samples
from deploy.errors import DataError


def test_thinning_keeps_rounds_and_openings() -> None:
    samples = Samples.of(np.arange(100.0), [10] * 10, [5, 5])
    few = samples.thinned(20)
    assert few.values.tolist() == list(np.arange(0, 100, 5.0))
    assert few.round_lengths.tolist() == [2] * 10
    assert samples.thinned(100) is samples
    fewer = samples.with_fewer_rounds(4)
    assert fewer.values.tolist() == [*range(10), *range(30, 40), *range(60, 70), *range(90, 100)]
    assert fewer.opening_rounds.tolist() == [2, 2]
    singles = Samples.of(np.arange(200_000.0)).reduced()
    assert singles.rounds == len(singles.values) == 50_000


@pytest.mark.parametrize(
    ("values", "rounds", "openings", "why"),
    [
        ([], [], [], "there are none"),
        ([1.0, math.nan], [], [], "not finite"),
        ([1.0, math.inf], [], [], "not finite"),
        ([1.0, 2.0], [1], [], "in rounds that hold 1"),
        ([1.0, 2.0], [2, 0], [], "1 or more"),
        ([1.0, 2.0], [1, 1], [3], "in openings that hold 3"),
    ],
)
def test_refuses_what_is_no_sequence(
    values: list[float], rounds: list[int], openings: list[int], why: str
) -> None:
    with pytest.raises(DataError, match=why):
        Samples.of(values, rounds, openings)
