"""Paired differences: by hand, and what they may and may not claim."""

from __future__ import annotations

import math

import pytest

from toolchain.ablation.paired import Paired, paired

VALUES = {
    "dean": {0: 90.4, 1: 90.1, 2: 90.6, 3: 88.0},
    "fixed": {0: 90.1, 1: 90.0, 2: 90.2, 9: 10.0},
    "alone": {7: 50.0},
}


def test_only_common_seeds_are_compared() -> None:
    found = paired(VALUES, "dean", "fixed")
    assert found is not None
    assert found.by_seed == pytest.approx({0: 0.3, 1: 0.1, 2: 0.4})
    assert found.mean == pytest.approx(0.8 / 3)
    spread = math.sqrt(((0.3 - 0.8 / 3) ** 2 + (0.1 - 0.8 / 3) ** 2 + (0.4 - 0.8 / 3) ** 2) / 2)
    half = 4.302653 * spread / math.sqrt(3)
    assert found.interval == pytest.approx((0.8 / 3 - half, 0.8 / 3 + half), abs=1e-5)
    assert paired(VALUES, "dean", "alone") is None
    assert paired(VALUES, "dean", "unheard") is None


@pytest.mark.parametrize(
    ("differences", "ends"),
    [
        ([0.3, 0.1, 0.4], "no difference can be shown"),
        ([0.30, 0.31, 0.32], "a is better"),
        ([-0.30, -0.31, -0.32], "a is worse"),
        ([0.3], "one seed has no spread, so nothing can be shown; run more seeds"),
        (
            [0.3, 0.3],
            "the same difference on every seed, and without a spread nothing can be shown",
        ),
        ([0.0, 0.0], "no difference on every seed, and without a spread nothing can be shown"),
    ],
)
def test_the_verdict_claims_what_the_interval_shows(differences: list[float], ends: str) -> None:
    one = Paired("a", "b", dict(enumerate(differences)))
    assert one.sentence.endswith(f"n = {len(differences)}: {ends}")
    assert one.better == (ends == "a is better")
    assert one.worse == (ends == "a is worse")


def test_the_sentence_has_every_number() -> None:
    one = Paired("dean", "fixed", {0: 0.3, 1: 0.1, 2: -0.1})
    assert one.sentence == (
        "dean - fixed: +0.10 points, 95 % [-0.40, +0.60], n = 3: no difference can be shown"
    )
