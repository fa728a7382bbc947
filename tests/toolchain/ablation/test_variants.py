"""Variants: from controllers and from files to overrides of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import ConfigError
from toolchain.ablation import variants
from toolchain.ablation.variants import Variant
from toolchain.recipe.reading import load_recipe

RECIPE = """
name: tiny
model: {builtin: mlp}
data: {kind: digits}
stages:
  - {stage: teacher}
  - {stage: pqk-prune, distil: {controller: ramp, controller_options: {start: 0.5}}}
  - {stage: pqk-distil, pretrained: {}}
  - {stage: slim}
  - {stage: recover}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def distils(path: Path, variant: Variant) -> list[tuple[str, dict[str, object]] | None]:
    recipe = variants.recipe_of(path, [], variant, 0)
    found = [
        getattr(stage, "distil", getattr(stage, "pretrained", None)) for stage in recipe.stages
    ]
    return [
        None if d is None else (d.controller, d.controller_options)
        for d in (found[1], found[2], found[4])
    ]


def test_a_controller_is_set_wherever_the_recipe_distils(path: Path) -> None:
    recipe = load_recipe(path)
    none, fixed, ramp = variants.of_controllers(recipe, ["none", "fixed", "ramp"])
    assert distils(path, none) == [None, None, None]
    assert distils(path, fixed) == [("fixed", {})] * 3
    # Options stay where the recipe gave them to this controller, and nowhere else.
    assert distils(path, ramp) == [("ramp", {"start": 0.5}), ("ramp", {}), ("ramp", {})]


def test_an_unknown_controller_is_answered_with_the_known(path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown 'ramb'.*'fixed'.*did you mean 'ramp'"):
        variants.of_controllers(load_recipe(path), ["ramb"])


def test_a_recipe_that_does_not_distil_is_refused(path: Path) -> None:
    path.write_text(RECIPE.split("stages:")[0] + "stages: [{stage: teacher}, {stage: prune}]\n")
    with pytest.raises(ConfigError, match=r"tiny: no stage distils \(teacher, prune\)"):
        variants.of_controllers(load_recipe(path), ["fixed"])


def test_a_file_takes_lists_and_mappings_in_its_order(tmp_path: Path, path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(
        "slow: [stages.recover.lr=0.001, seed=3]\n"
        "dist:\n"
        "  stages.recover.distil.losses: [{loss: logit_mse, strength: 1e-1}]\n"
        "  structure.importance: l1\n"
        "same:\n"
    )
    slow, dist, same = variants.of_file(file)
    assert (slow.name, dist.name, same.name) == ("slow", "dist", "same")
    assert same.overrides == ()
    assert variants.recipe_of(path, [], slow, 7).stages[-1].lr == 0.001
    assert variants.recipe_of(path, [], slow, 7).seed == 7
    made = variants.recipe_of(path, ["structure.align=8"], dist, 0)
    (loss,) = made.stages[-1].distil.losses
    assert (loss.loss, loss.strength) == ("logit_mse", 0.1)
    assert (made.structure.importance, made.structure.align) == ("l1", 8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "holds no variant"),
        ("kl: 3", "kl: 3 given; accepted: a list"),
        ("kl: [3]", r"kl: \[3\] given; accepted: a list"),
        ("a/b: []", "'a/b' cannot name a variant"),
        ("- kl", "holds a list"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        variants.of_file(file)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_recipe_names_the_variant(path: Path) -> None:
    with pytest.raises(ConfigError, match="variant odd: --set stages.recover.lr=fast"):
        variants.recipe_of(path, [], Variant("odd", ("stages.recover.lr=fast",)), 0)
    mistaken = Variant("odd", ("stages.recover.distil.losses=[{loss: klx}]",))
    with pytest.raises(
        ConfigError, match=r"variant odd: stages\[4\] \(recover\): distil.losses: unknown"
    ):
        variants.recipe_of(path, [], mistaken, 0)


def test_only_chooses_and_names_are_taken_once() -> None:
    both = [Variant("kl", ()), Variant("at", ())]
    assert variants.chosen(both, []) == both
    assert [variant.name for variant in variants.chosen(both, ["at"])] == ["at"]
    with pytest.raises(ConfigError, match="--only: unknown 'att'.*did you mean 'at'"):
        variants.chosen(both, ["att"])
    with pytest.raises(ConfigError, match="--only: at given twice"):
        variants.chosen(both, ["at", "kl", "at"])
    with pytest.raises(ConfigError, match="two variants are called 'kl'"):
        variants.chosen([*both, Variant("kl", ())], [])


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (["dean", "none", "fixed"], [], ["fixed"]),
        (["dean", "none"], [], ["none"]),
        (["dean", "ramp"], [], ["dean"]),
        (["dean", "ramp"], ["ramp", "dean", "ramp"], ["ramp", "dean"]),
    ],
)
def test_the_baseline_is_the_plainest(
    names: list[str], given: list[str], expected: list[str]
) -> None:
    assert variants.baselines([Variant(name, ()) for name in names], given) == expected


def test_a_baseline_that_no_variant_is_is_refused() -> None:
    with pytest.raises(ConfigError, match="--baseline: unknown 'fixd'.*did you mean 'fixed'"):
        variants.baselines([Variant("fixed", ())], ["fixd"])
