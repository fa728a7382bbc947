"""The variants that ship: each fits the recipes that its file names, and says what it compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.ablation.variants import Variant, of_file, recipe_of
from toolchain.chain import check_order
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.losses.entry import LOSSES

RECIPES = Path(__file__).parents[2] / "deploy" / "recipes"
FILES = sorted((RECIPES / "variants").glob("*.yaml"))
TEN = ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ft", "nst", "crd")
PAIRS = [
    ("cifar10-distil", "cifar10-distil"),
    ("cifar10-ddsl", "cifar10-ddsl"),
    ("cifar10-distil-plain", "cifar10-distil"),
    ("cifar10-distil-vit", "cifar10-distil-vit"),
]


@pytest.mark.parametrize(("recipe", "file"), PAIRS)
def test_every_variant_fits_its_recipe(recipe: str, file: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "teacher.safetensors"
    checkpoint.touch()
    given = [f"data.root={tmp_path}", f"model.checkpoint={checkpoint}"]
    for variant in of_file(RECIPES / "variants" / f"{file}.yaml"):
        made = recipe_of(RECIPES / f"{recipe}.yaml", given, variant, 0)
        distil = made.stages[-1].distil
        if variant.name == "none":
            assert distil is None
            continue
        CONTROLLERS.look_up(distil.controller).check(distil.controller_options)
        for loss in distil.losses:
            LOSSES.look_up(loss.loss).bind(**loss.options)


def test_every_file_is_tried() -> None:
    assert {path.stem for path in FILES} == {file for _, file in PAIRS}


def test_the_ten_base_distillers_are_kl_and_one_more() -> None:
    variants = {v.name: v for v in of_file(RECIPES / "variants" / "cifar10-distil.yaml")}
    for name in TEN:
        recipe = recipe_of(RECIPES / "cifar10-distil.yaml", _absent(), variants[name], 0)
        losses = [loss.loss for loss in recipe.stages[-1].distil.losses]
        assert losses == ["kl", name]


def test_the_controllers_have_the_same_terms() -> None:
    variants = {v.name: v for v in of_file(RECIPES / "variants" / "cifar10-distil.yaml")}
    names = ("fixed", "dean", "anti", "ramp", "temperature")
    made = [recipe_of(RECIPES / "cifar10-distil.yaml", _absent(), variants[n], 0) for n in names]
    distils = [recipe.stages[-1].distil for recipe in made]
    assert [distil.controller for distil in distils] == list(names)
    assert all(distil.losses == distils[0].losses for distil in distils)


def test_ddsl_trains_as_long_under_every_controller() -> None:
    made = {
        v.name: recipe_of(RECIPES / "cifar10-ddsl.yaml", _absent(), v, 0)
        for v in of_file(RECIPES / "variants" / "cifar10-ddsl.yaml")
    }
    plain = recipe_of(RECIPES / "cifar10-distil.yaml", _absent(), Variant("", ()), 0)
    budget = sum(getattr(stage, "epochs", 0) for stage in plain.stages)
    for name, recipe in made.items():
        taught = [stage for stage in recipe.stages if hasattr(stage, "epochs")]
        assert sum(stage.epochs for stage in taught) == budget, name
        check_order(recipe.stages)
        told = {stage.distil and stage.distil.controller for stage in taught}
        expected = {"at-once": "fixed", "dean-often": "dean", "none": None}.get(name, name)
        assert told == {expected}, name
    assert {name for name, r in made.items() if r.stages[1].fixed_from == 0} == {"at-once"}


def _absent() -> list[str]:
    return [f"data.root={RECIPES}", f"model.checkpoint={RECIPES / 'cifar10-distil.yaml'}"]
