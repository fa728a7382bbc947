"""What an ablation says: budgets, sizes, differences, the dean, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from toolchain.ablation.findings import Ablation
from toolchain.ablation.outcome import Outcome
from toolchain.ablation.table import HEAD, markdown, rows
from toolchain.ablation.variants import Variant
from toolchain.ablation.workers import Failure
from toolchain.runs.training_logs import Course, Trained

Make = Callable[..., Outcome]


def ablation(outcomes: Sequence[Outcome], *, seeds: int = 3, **more: Any) -> Ablation:
    names = dict.fromkeys(one.variant for one in outcomes)
    given: dict[str, Any] = {
        "recipe": "tiny",
        "title": "CIFAR-10 (JPEG)",
        "variants": [Variant(name, ("stages.3.distil=null",)) for name in names],
        "seeds": list(range(seeds)),
        "baselines": ["fixed"],
        "outcomes": outcomes,
        "failures": (),
        "at_once": 1,
        "command": "compress-deploy ablate tiny.yaml",
        "environment": {"cpu_model": "a CPU", "usable_cores": 2, "python": "3.11.7"},
        "installed": {"torch": "2.13.0"},
    }
    return Ablation(**{**given, **more})


def said(found: Ablation) -> str:
    return "\n".join(found.sentences())


def grid(make: Make, points: dict[str, list[float]], **more: Any) -> list[Outcome]:
    return [
        make(name, seed, top1, **more)
        for name, values in points.items()
        for seed, top1 in enumerate(values)
    ]


def test_where_a_policy_left_samples_out_is_said(outcome: Make) -> None:
    def trail(*shares: float) -> dict[str, Course]:
        spots = ("layer1", "layer2", "layer3", "logits")
        return {f"distilled.{s}": Course(1.0, x, x) for s, x in zip(spots, shares, strict=True)}

    runs = [
        outcome("sure", 0, 90.0, trail=trail(1.0, 0.9999, 1.0, 0.9995)),
        outcome("sure", 1, 90.0, trail=trail(1.0, 1.0, 0.993, 1.0)),
        outcome("undecided", 0, 90.0, trail=trail(0.7, 0.8, 0.9, 0.5)),
        outcome("undecided", 1, 90.0, trail=trail(0.9, 0.8, 0.8, 0.5)),
        outcome("undecided", 2, 90.0, trail=trail(0.6, 0.8, 0.7, 0.5)),
        outcome("fixed", 0, 90.0),
    ]
    lines = said(ablation(runs)).split("\n")
    assert (
        "sure: at most 0.70% of the samples were left out at any spot, so this was all but fixed strength; "
        "with controller_options {homo: false} the policy starts undecided."
    ) in lines
    assert (
        "undecided: 26.7% of the samples were left out at layer1, the first spot, and 20.0% at layer3, the "
        "last before the logits; more at the first in 2 of 3 runs."
    ) in lines
    assert not any(line.startswith("fixed:") for line in lines)


def test_equal_budgets_are_said_in_one_sentence(outcome: Make) -> None:
    found = ablation(grid(outcome, {"fixed": [90.0, 91.0, 90.5], "none": [89.0, 90.5, 89.9]}))
    assert found.sentences()[0] == (
        "Budgets are equal: every run trained for 100 steps of 128 images."
    )
    assert "none - fixed: -0.70 points, 95 % [-1.36, -0.04], n = 3: none is worse" in said(found)


def test_unequal_budgets_and_sizes_are_said(outcome: Make) -> None:
    runs = [outcome("fixed", 0, 90.0), outcome("none", 0, 90.0, steps=90, macs=1500)]
    text = said(ablation(runs, seeds=1))
    assert "Budgets are NOT equal" in text
    assert "fixed: 100 steps of 128 images; none: 90 steps of 128 images" in text
    assert "Students differ in size, which accuracy is to be read with: 1,000 to 1,500 MACs" in text


@pytest.mark.parametrize(
    ("dean", "sentence"),
    [
        ([90.4, 91.1, 90.6], "The dean is not shown to beat fixed strength here."),
        ([89.9, 91.2, 90.3], "The dean does not beat fixed strength here."),
        ([89.0, 90.0, 89.4], "The dean is worse than fixed strength here."),
        ([91.0, 92.0, 91.51], ""),
    ],
)
def test_a_dean_that_does_not_beat_fixed_strength_is_told_of(
    outcome: Make, dean: list[float], sentence: str
) -> None:
    runs = grid(outcome, {"dean": dean, "fixed": [90.0, 91.0, 90.5], "none": [80.0, 80.1, 80.2]})
    for baseline in ("fixed", "none", "dean"):
        lines = ablation(runs, baselines=[baseline]).sentences()
        assert [line for line in lines if line.startswith("The dean")] == [sentence] * bool(
            sentence
        )
        assert sum(line.startswith("dean - fixed:") for line in lines) == 1


def test_one_seed_shows_nothing_and_says_so_once(outcome: Make) -> None:
    found = ablation(
        grid(outcome, {"a": [90.0], "b": [80.0], "fixed": [85.0]}), seeds=1, baselines=["fixed"]
    )
    assert said(found).count("run more seeds") == 1
    assert all(one.interval is None for one in found.comparisons())


def test_failures_and_missing_runs_are_named(outcome: Make) -> None:
    runs = [outcome("fixed", 0, 90.0), outcome("none", 0, 89.0)]
    found = ablation(runs, failures=[Failure("none", 1, "loss is nan at step 7")])
    assert "FAILED none, seed 1: loss is nan at step 7" in said(found)
    assert found.missing == 3
    assert "3 of 6 runs are missing." in said(found)


def test_a_dean_in_fallback_is_told_of(outcome: Make) -> None:
    trail = {"dean.fallback": Course(0.0, 1.0, 0.25), "strength.kl": Course(1.0, 0.5, 0.8)}
    still = {"strength.at": Course(0.9, 0.9, 0.9 + 1e-15)}  # a mean is rounded
    runs = [outcome("dean", 0, 90.0, trail=trail), outcome("fixed", 0, 90.0, trail=still)]
    found = ablation(runs, seeds=1)
    assert "dean: 25% of the strengths, in the mean over all steps, were the recipe's" in said(
        found
    )
    page = markdown(found)
    assert "| dean | strength.kl | 1 | 0.5 | 0.8 |" in page
    assert "strength.at" not in page  # what never moved says nothing


def test_every_stage_with_a_controller_is_told_of_by_itself(outcome: Make) -> None:
    moved = {"dean.moved": Course(0.0, 1.0, 0.5), "dean.fallback": Course(1.0, 0.5, 0.75)}
    still = {"dean.moved": Course(0.0, 0.0, 0.0), "dean.fallback": Course(1.0, 1.0, 1.0)}

    def trained(*stages: str) -> tuple[Trained, ...]:
        """The first one's dean moved, the others' stood still; one had no controller."""
        trails = [moved, *[still] * (len(stages) - 1)]
        taught = [Trained(*one, 9, 8, 1.0, t) for one, t in zip(zip(stages), trails, strict=True)]
        return Trained("train", 9, 8, 1.0, {}), *taught

    three = trained("pqk-prune", "recover", "recover")
    runs = [outcome("dean", 0, 90.0, trained=three), outcome("fixed", 0, 91.0)]
    found = ablation(runs, seeds=1)
    text = said(found)
    assert "dean, in pqk-prune: 75% of the strengths" in text
    assert "dean, in pqk-prune: the dean never" not in text
    for stage in ("recover", "recover 2"):
        assert f"dean, in {stage}: the dean never moved a strength in 1 of 1 run" in text
    assert "The dean does not beat fixed strength here." in text  # it was there, if only once
    assert "| dean | pqk-prune: dean.fallback | 1 | 0.5 | 0.75 |" in markdown(found)
    alone = outcome("dean", 0, 90.0, trained=trained("recover"))
    assert "dean: 75% of the strengths" in said(ablation([alone], seeds=1))


def test_no_teacher_is_labels_alone_but_for_pqks_own(outcome: Make) -> None:
    variant = Variant("none", ("stages.2.pretrained=null", "stages.4.distil=null"))
    page = markdown(ablation([outcome("none", 0, 90.0)], seeds=1, variants=[variant]))
    assert "- none: labels alone, and the in-network teacher of pqk-distil; `stages.2." in page


def test_a_dean_that_moved_nothing_is_said_with_the_reason(outcome: Make) -> None:
    def trail(judged: float, moved: float) -> dict[str, Course]:
        return {
            "dean.judged": Course(0.0, judged, judged / 2),
            "dean.moved": Course(0.0, moved, moved),
        }

    fixed = [outcome("fixed", seed, 90.0 + seed) for seed in range(3)]

    def told(*trails: dict[str, Course]) -> str:
        runs = [outcome("dean", n, 89.5 + n, trail=one) for n, one in enumerate(trails)]
        return said(ablation([*runs, *fixed]))

    text = told(trail(1, 1), trail(1, 1), trail(1, 0))
    assert (
        "dean: the dean never moved a strength in 1 of 3 runs (no evidence that moving one helps), so"
        in text
    )
    assert "The dean does not beat fixed strength here." in text
    text = told(trail(0, 0), trail(0, 0), trail(0, 0))
    assert "never moved a strength in 3 of 3 runs (too few probes to judge it)" in text
    assert "The dean" not in text  # it was not there
    for quiet in (told(*[trail(1, 1)] * 3), told({}, {}, {})):
        assert "never moved" not in quiet and "too few" not in quiet
        assert "The dean does not beat fixed strength here." in quiet


def test_rows_have_mean_and_spread(outcome: Make) -> None:
    found = ablation(grid(outcome, {"fixed": [90.0, 91.0, 92.0]}))
    (row,) = rows(found)
    of = dict(zip(HEAD, row, strict=True))
    assert of["test top-1, %"] == "91.00 ± 1.00"
    assert of["validation top-1, %"] == "92.00 ± 1.00"
    assert (of["n"], of["MACs"], of["steps"], of["seeds"]) == ("3", "1,000", "100", "0, 1, 2")


def test_the_page_says_what_it_depends_on(outcome: Make) -> None:
    runs = grid(outcome, {"fixed": [90.0, 91.0, 92.0], "none": [89.0, 88.0, 91.0]})
    page = markdown(ablation(runs, at_once=8))
    for part in (
        "CIFAR-10 (JPEG), fingerprint 0123456789ab",
        "teacher: 95.00 % on the test part",
        "a CPU, 2 cores",
        "float32 on the CPU",
        "torch 2.13.0",
        "written by: `compress-deploy ablate tiny.yaml`",
        "never the best one, on the 10,000 test images",
        "8 runs at a time shared the machine",
        "- none: labels alone; `stages.3.distil=null`",
        "| none - fixed | 3 | -1.67 |",
    ):
        assert part in page, part


def test_nothing_yet_is_still_a_page() -> None:
    found = ablation([], variants=[Variant("fixed", ())], failures=[Failure("fixed", 0, "broke")])
    assert "FAILED fixed, seed 0: broke" in markdown(found)
