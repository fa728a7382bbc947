"""What is said of the papers' claims: as seen, in either direction, or that nothing can be shown."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.analysis.claims import delay, sentences, with_depth, with_training
from toolchain.analysis.probing import Probed
from toolchain.analysis.sparsities import Damage


def probed(step: int, start: float, slope: float, *, layers: int = 12, probes: int = 6) -> Probed:
    noise = np.random.default_rng(step).normal(scale=0.01, size=(layers, probes))
    found = {f"layer{n}": (start + slope * n + noise[n]).tolist() for n in range(layers)}
    return Probed(step, found, {})


def damage(group: str, sparsity: float, loss: float) -> Damage:
    return Damage(group, 8, 4, sparsity, loss, (loss - 0.1, loss + 0.1), -loss)


def test_growth_with_depth_is_seen_and_its_opposite_too() -> None:
    up, down = with_depth(probed(0, 0.1, 0.05).layers), with_depth(probed(0, 0.9, -0.05).layers)
    assert up is not None and down is not None
    assert (up.finding, down.finding) == ("grows", "falls")
    assert with_depth({"a": [0.1], "b": [0.2]}) is None


@pytest.mark.parametrize(
    ("last", "finding", "fell"),
    [(0.3, "falls", 12), (0.9, "grows", 0), (0.6, "no change can be shown", None)],
)
def test_change_with_training(last: float, finding: str, fell: int | None) -> None:
    change = with_training([probed(0, 0.6, 0.0), probed(50, 0.1, 0.0), probed(99, last, 0.0)])
    assert change is not None
    assert change.finding == finding
    assert change.first == pytest.approx(0.6, abs=0.02)
    assert change.last == pytest.approx(last, abs=0.02)
    assert change.n == 12 and (fell is None or change.fell == fell)


def test_one_probe_cannot_show_a_change() -> None:
    change = with_training([probed(0, 0.6, 0.0, probes=1), probed(9, 0.1, 0.0, probes=1)])
    assert change is not None
    assert change.interval is None and change.finding == "no change can be shown"
    assert with_training([probed(0, 0.6, 0.0)]) is None


@pytest.mark.parametrize(
    ("fixed", "other", "finding"),
    [
        (0.3, 0.5, "delays the fall"),
        (0.3, 0.1, "hastens the fall"),
        (0.3, 0.3, "that it delays the fall cannot be shown"),
        (0.8, 0.9, "at fixed strength it did not fall"),
    ],
)
def test_a_controller_is_held_against_fixed_strength(
    fixed: float, other: float, finding: str
) -> None:
    start, end = probed(0, 0.6, 0.0), probed(50, fixed, 0.0)
    noise = np.random.default_rng(7).normal(scale=0.01, size=(12, 6))
    noise -= noise.mean()
    ended = {
        name: (np.array(values) + other - fixed + noise[place]).tolist()
        for place, (name, values) in enumerate(end.layers.items())
    }
    found = delay([start, end], [start, Probed(50, ended, {})])
    assert found is not None
    assert found.finding == finding
    assert found.more == pytest.approx(other - fixed, abs=1e-9)
    mine = np.array(list(ended.values())) - np.array(list(end.layers.values()))
    assert found.higher == int((mine.mean(1) > 0).sum()) and found.n == 12
    said = sentences([start, end], {}, {"dean": [start, Probed(50, ended, {})]})
    assert said[-1].startswith("Distillability under dean less that at fixed strength, at step 50,")
    assert f": {finding}. One training" in said[-1]


def test_a_controller_that_moved_nothing_is_not_compared() -> None:
    seen = [probed(0, 0.6, 0.0), probed(50, 0.3, 0.0)]
    never = {"dean": ("moved", "judged"), "anti": ("moved",)}
    said = sentences(seen, {}, {"dean": seen, "anti": seen, "ramp": seen}, never)[-3:]
    assert said[0] == (
        "Under dean no strength ever moved from the recipe's (too few probes to judge it), so there is "
        "nothing to compare; shorten probe_every or train longer."
    )
    assert said[1].endswith("nothing to compare; raise probe_size or held_out.")
    assert said[2].endswith("another seed.")


def test_trainings_that_end_elsewhere_are_not_compared() -> None:
    start, end = probed(0, 0.6, 0.0), probed(50, 0.3, 0.0)
    assert delay([start, end], [start, probed(49, 0.3, 0.0)]) is None
    assert delay([start], [start]) is None


def test_sentences_tell_every_claim_with_its_numbers() -> None:
    damages = [damage(f"g{n}", s, (10 - n) * s) for n in range(9) for s in (0.25, 0.75)]
    said = sentences(
        [probed(0, 0.1, 0.05), probed(40, 0.0, 0.01)],
        {"of the pretrained network": damages, "after training": damages},
    )
    assert len(said) == 5
    assert said[0].startswith("Distillability with depth at step 0, over 12 layers: rank correl")
    assert said[0].endswith(": grows.")
    assert said[1].startswith("Distillability with depth at step 40")
    assert "lower in 12 of 12 layers: falls." in said[2]
    assert said[3].startswith(
        "Sparsability of the pretrained network: the cost of 75% of one group"
    )
    assert said[3].endswith(": falls.") and "after training" in said[4]
    assert sentences([probed(0, 0.1, 0.05, layers=2)], {}) == []
