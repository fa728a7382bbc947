"""The README against the product: its commands, recipes, code, files and room map exist as told."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from deploy.errors import CompressDeployError
from toolchain.ablation.variants import of_file
from toolchain.chain import standard_chain
from toolchain.cli import app
from toolchain.recipe.reading import load_recipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)
TARGETS = set(re.findall(r"^([a-z.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
ROOMS = ("toolchain", "exporters", "benchmarks", "deploy")


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCKS if name == language]


def commands(program: str) -> list[list[str]]:
    """Every call of ``program`` in the README, as words, without comments and redirections."""
    lines = [line for body in blocks("console") for line in body.splitlines()]
    calls = [shlex.split(line.partition(" >")[0], comments=True) for line in [*lines, *INLINE]]
    return [words[1:] for words in calls if words[:1] == [program] and len(words) > 1]


def test_there_is_something_to_check() -> None:
    assert len(commands("make")) >= 3
    assert len(commands("compress-deploy")) >= 6
    assert {name for name, _ in BLOCKS} == {"console", "yaml", "python", "text"}


def test_the_first_screen_has_both_commands() -> None:
    first = "\n".join(TEXT.splitlines()[:15])
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_has_the_target(words: list[str]) -> None:
    assert set(words) <= TARGETS


@pytest.mark.parametrize("words", commands("compress-deploy"), ids=" ".join)
def test_the_command_line_takes_it(words: list[str]) -> None:
    """Parsed down to the verb that would run, options and all, but not run."""
    command = typer.main.get_command(app)
    path = list(words)
    while isinstance(command, typer.core.TyperGroup):
        assert path, "a verb is missing"
        name = path.pop(0)
        assert name in command.commands
        command = command.commands[name]
    command.make_context("compress-deploy", path)
    for word in words:
        if word.startswith("deploy/recipes/variants/"):
            assert of_file(ROOT / word)
        elif word.startswith("deploy/"):
            load_recipe(ROOT / word, need_files=False)


@pytest.mark.parametrize("option", [word for word in INLINE if word.startswith("--")])
def test_an_option_that_prose_names_exists(option: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    known = {name for verb in group.commands.values() for p in verb.params for name in p.opts}
    assert option.split()[0] in known


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_are_recipes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    load_recipe(path, need_files=False)
    path.write_text(text.replace("data:", "dta:"))
    with pytest.raises(CompressDeployError, match="data"):
        load_recipe(path, need_files=False)


def test_the_example_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's recipe and its net.py, with pictures of noise and an untrained teacher."""
    recipe = blocks("yaml")[0]
    source = next(body for body in blocks("python") if "def build" in body)
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "net.py").write_text(source)
    module = types.ModuleType("net")
    exec(source, module.__dict__)
    save_file(module.build(classes=5).state_dict(), tmp_path / "teacher.safetensors")
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "abcde":
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = noise.integers(0, 256, (70, 66, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan", "recipe.yaml"])
    assert result.exit_code == 0, result.output
    assert "planned" in result.output


@pytest.mark.parametrize("text", blocks("python"))
def test_code_imports_what_exists(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).is_file()


@pytest.mark.parametrize(
    "path", [word for word in INLINE if word.startswith(tuple(f"{room}/" for room in ROOMS))]
)
def test_files_that_prose_names_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_standard_chain_is_told_as_it_is() -> None:
    assert " → ".join(f"`{stage.stage}`" for stage in standard_chain()) in TEXT


def room_map() -> dict[str, set[str]]:
    """The files and folders that the map names, by room."""
    (body,) = (body for body in blocks("text") if body.startswith("toolchain/\n"))
    parts = re.split(r"^(\w+)/\n", body, flags=re.MULTILINE)[1:]
    names = [re.findall(r"\b\w+\.py\b|^  \w+/", part, re.MULTILINE) for part in parts[1::2]]
    return {
        room: {name.strip() for name in found}
        for room, found in zip(parts[::2], names, strict=True)
    }


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_names_what_is_in_the_room(room: str) -> None:
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / room).iterdir()
        if path.suffix == ".py" or path.is_dir()
    }
    there -= {"__init__.py", "__pycache__/"}
    inside = {path.name for path in (ROOT / room).glob("*/*.py")}
    named = room_map()[room]
    assert there <= named <= there | inside
