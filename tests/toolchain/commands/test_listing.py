"""``list``: every name with its source, and the spots of a recipe's networks."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from toolchain.cli import app
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.teachers.registry import TEACHERS
from toolchain.models import registry


def listed(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["list", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize(
    ("what", "entries"),
    [("losses", LOSSES), ("controllers", CONTROLLERS), ("teachers", TEACHERS)],
)
def test_every_name_is_listed_with_its_source(what: str, entries: dict[str, object]) -> None:
    result = listed(what)
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split()[-2:] == ["source", "about"]
    assert [line.split()[0] for line in lines] == list(entries)
    for line, entry in zip(lines, entries.values(), strict=True):
        source = entry.source  # type: ignore[attr-defined]
        assert (source or " - ") in line
        assert len(line) > line.index(source or " - ") + len(source or " - ") + 10  # says something


def test_models_are_listed_with_a_line_and_their_arguments() -> None:
    lines = listed("models").stdout.splitlines()
    models = {line.split()[0]: line for line in lines[::2]}
    arguments = dict(zip(models, lines[1::2], strict=True))
    assert tuple(models) == registry.names()
    for name, builder in registry.builders().items():
        assert len(models[name].split()) > 4  # says something
        column = models[name].index(models[name].split()[1])
        assert arguments[name][:column].strip() == ""
        said = arguments[name][column:]
        assert said.startswith("args: ")
        # As Python reads them they are the builder's own arguments, none missing, each with its default.
        given = eval(f"dict({said.removeprefix('args: ')})")
        parameters = inspect.signature(builder).parameters
        assert given == {key: each.default for key, each in parameters.items()}


def test_losses_have_their_customary_strength() -> None:
    line = next(line for line in listed("losses").stdout.splitlines() if line.startswith("at "))
    assert line.split()[1] == f"{LOSSES['at'].default_strength:g}" == "1000"


def test_spots_are_those_of_the_recipes_networks(quarters: Path) -> None:
    student = "{stage: student, builtin: mlp, args: {classes: 4}}"
    stages = f"stages=[{{stage: teacher}}, {student}, {{stage: recover}}]"
    lines = listed("spots", quarters, "--set", stages).stdout.splitlines()
    assert lines[0] == "model: spot, shape for one image"
    shapes = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line[0] == " "}
    assert shapes["layer2"] == "8 x 4 x 4"
    assert shapes["logits"] == "4"
    second = lines.index("stages[1] (student): spot, shape for one image")
    assert any(line.split()[0] == "logits" for line in lines[second:])


@pytest.mark.parametrize("arguments", [["spots"], ["losses", "recipe.yaml"]])
def test_spots_alone_take_a_recipe(arguments: list[str]) -> None:
    result = listed(*arguments)
    assert result.exit_code == 1
    assert "accepted: `list spots RECIPE`" in result.stderr and result.stderr.count("\n") == 1


def test_what_does_not_exist_is_wrong_usage() -> None:
    assert listed("lossess").exit_code == 2
