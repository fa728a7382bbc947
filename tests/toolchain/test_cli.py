"""The command line: what each verb passes on, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from deploy.errors import StructureError
from toolchain.cli import app
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import run_stages
from toolchain.stages import STAGES

ROOT = Path(__file__).parents[2]
MINIMAL = "name: tiny\nmodel: {builtin: mlp}\ndata: {kind: digits}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_lists_the_verbs_and_shows_examples() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for word in ("run", "plan", "recipe", "list", "results", "version", "Examples:"):
        assert word in result.stdout


def test_run_passes_everything_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Recipe, dict[str, Any]]] = []

    def run_recipe(recipe: Recipe, **options: Any) -> int:
        calls.append((recipe, options))
        return 1

    monkeypatch.setattr("toolchain.chain.run_recipe", run_recipe)
    out = tmp_path / "runs"
    result = call("run", recipe, "--set", "seed=3", "--threads", 2, "--out", out, "--allow-missed")
    assert result.exit_code == 1
    ((given, options),) = calls
    assert (given.seed, given.threads) == (3, 2)
    assert options["out"] == out
    assert options["allow_missed"] is True


def test_plan_passes_everything_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []

    def plan_recipe(recipe: Recipe, as_json: bool) -> int:
        calls.append((recipe.seed, as_json))
        return 1

    module = types.SimpleNamespace(plan_recipe=plan_recipe)
    monkeypatch.setitem(sys.modules, "toolchain.structure.preflight", module)
    assert call("plan", recipe, "--set", "seed=3", "--json").exit_code == 1
    assert calls == [(3, True)]


def test_results_passes_everything_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[Path], Path]] = []
    module = types.SimpleNamespace(write_table=lambda runs, out: calls.append((runs, out)))
    monkeypatch.setitem(sys.modules, "toolchain.runs.table", module)
    assert call("results", "a", "b", "--out", tmp_path / "t.md").exit_code == 0
    assert calls == [([Path("a"), Path("b")], tmp_path / "t.md")]
    assert call("results", "a").exit_code == 2


def test_an_interrupt_says_how_to_go_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_recipe(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolchain.chain.run_recipe", run_recipe)
    result = call("run", recipe)
    assert result.exit_code == 130
    assert result.stderr.strip().endswith("interrupted; run the same command again to resume")


def test_what_a_user_can_fix_is_one_line(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_recipe(*_: Any, **__: Any) -> int:
        raise StructureError("fc: cannot be cut")

    monkeypatch.setattr("toolchain.chain.run_recipe", run_recipe)
    result = call("run", recipe)
    assert result.exit_code == 1
    assert result.stderr == "compress-deploy: fc: cannot be cut\n"
    assert result.stdout == ""


def test_a_bug_is_not_dressed_up(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_recipe(*_: Any, **__: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("toolchain.chain.run_recipe", run_recipe)
    assert isinstance(call("run", recipe).exception, ZeroDivisionError)


def test_a_bad_recipe_starts_nothing(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    result = call("run", recipe, "--set", "structure.aling=8", "--out", out)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "--set structure.aling=8: structure.aling: unknown key" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rn"], "'run'"),
        (["run"], "RECIPE"),
        (["run", "x.yaml", "--ouut", "x"], "--out"),
        (["run", "x.yaml", "--threads", "0"], "--threads"),
        (["list", "modles"], "'models'"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_right(arguments: list[str], hint: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert hint in result.stderr


def test_recipe_show(recipe: Path) -> None:
    short = call("recipe", "show", recipe, "--set", "seed=3")
    assert yaml.safe_load(short.stdout) == {**yaml.safe_load(MINIMAL), "seed": 3}
    full = yaml.safe_load(call("recipe", "show", recipe, "--resolved").stdout)
    assert set(full) == set(Recipe.model_fields)
    assert len(full["stages"]) > 0


def test_recipe_schema_is_json() -> None:
    schema = json.loads(call("recipe", "schema").stdout)
    assert set(schema["properties"]) == set(Recipe.model_fields)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("models", {"cifar_resnet", "mlp"}),
        ("data", {"digits", "parquet", "folder", "npz"}),
        ("importances", {"l1", "l2", "taylor", "bn_scale"}),
        ("stages", {str(stage.model_fields["stage"].default) for stage in STAGES}),
    ],
)
def test_list(what: str, names: set[str]) -> None:
    result = call("list", what)
    assert result.exit_code == 0
    assert names <= {line.split()[0] for line in result.stdout.splitlines()}


def test_version_names_the_packages() -> None:
    lines = call("version").stdout.splitlines()
    assert {"compress-deploy", "python", "torch"} <= {line.split()[0] for line in lines}


def test_a_module_run_from_elsewhere_gives_the_same_status(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from toolchain.cli import main; main()", "plan", "nope.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr == (
        f"compress-deploy: {tmp_path / 'nope.yaml'}: no such file; give the path of a recipe\n"
    )


def test_progress_headings_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from toolchain.training.progress import Progress

    recipe = Recipe.model_validate(yaml.safe_load(MINIMAL)).model_copy(update={"stages": []})
    assert run_stages(recipe, tmp_path, progress=Progress(plain=True)).key == ""
    assert capsys.readouterr().out == ""
