"""The recipes that ship: each can be read, and baselines have what they are compared by in common."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from toolchain.recipe.reading import load_recipe
from toolchain.recipe.schema import Recipe

RECIPES = Path(__file__).parents[2] / "deploy" / "recipes"


def shipped(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", need_files=False)


def epochs(recipe: Recipe) -> float:
    return math.fsum(getattr(stage, "epochs", 0) for stage in recipe.stages)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_called_like_its_file_and_says_how_it_is_run(path: Path) -> None:
    assert shipped(path.stem).name == path.stem
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("baseline", ["cifar10-resnet20-oneshot", "cifar10-resnet20-oneshot-kd"])
def test_baselines_have_the_same_data_teacher_goals_and_epochs(baseline: str) -> None:
    ours, theirs = shipped("cifar10-resnet20"), shipped(baseline)
    assert theirs.model == ours.model
    assert theirs.data == ours.data
    assert theirs.goals == ours.goals
    assert theirs.precision == ours.precision
    assert epochs(theirs) == epochs(ours)


def test_the_baselines_differ_in_who_teaches_alone() -> None:
    plain, taught = (shipped(f"cifar10-resnet20-oneshot{end}") for end in ("", "-kd"))
    assert taught.structure == plain.structure
    names = [[stage.stage for stage in recipe.stages] for recipe in (plain, taught)]
    assert names[0] == ["teacher", "prune", "slim", "train", "export", "report"]
    assert names[1] == ["teacher", "prune", "slim", "recover", "export", "report"]
    settings = [
        recipe.stages[3].model_dump(exclude={"stage", "distil"}) for recipe in (plain, taught)
    ]
    assert settings[0] == settings[1]
