"""``compress-deploy lint`` as a user calls it: table, JSON, explanations, exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from exporters.lint.registry import rules
from tests.exporters.lint.corpus import CASES
from toolchain.cli import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, ["lint", *(str(argument) for argument in arguments)], env={"COLUMNS": "160"}
    )


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str], Path]:
    def save(name: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(CASES[name].model(), str(path))
        return path

    return save


def test_a_clean_graph(save: Callable[[str], Path]) -> None:
    result = call(save("conv-signed"))
    assert result.exit_code == 0
    assert "conv-signed.onnx: no errors, no warnings, no notes for tensorrt" in result.stdout
    assert "NVIDIA" not in result.stdout


def test_a_refused_graph(save: Callable[[str], Path]) -> None:
    result = call(save("bias-int32"))
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "WEIGHT-BIAS" in text
    assert "1 error, no warnings, no notes" in text
    assert "NVIDIA's importer would refuse it" in text
    assert text.count("QuantizeBias=False") == 1


def test_warnings_do_not_fail(save: Callable[[str], Path]) -> None:
    result = call(save("residual-branch-unquantized"))
    assert result.exit_code == 0
    assert "PLACE-ADD-ONE-SIDED" in result.stdout
    assert "join" in result.stdout


def test_the_target_decides(save: Callable[[str], Path]) -> None:
    path = save("conv-relu-signed")
    assert call(path, "--target", "tensorrt").exit_code == 0
    result = call(path, "--target", "ort-cpu")
    assert result.exit_code == 1
    assert "ORT-RELU-SIGNED" in result.stdout


def test_the_version_decides(save: Callable[[str], Path]) -> None:
    path = save("opset-24")
    assert call(path, "--tensorrt", "11.4").exit_code == 0
    result = call(path, "--tensorrt", "10.3")
    assert "FILE-OPSET" in result.stdout
    assert "TensorRT 10.3" in result.stdout
    assert call(path, "--tensorrt", "8.6").exit_code == 1


def test_many_nodes_are_counted(tmp_path: Path) -> None:
    model = CASES["conv-signed"].model()
    for place in range(8):
        model.graph.node.add(
            op_type="Frobnicate", name=f"odd{place}", input=["x"], output=[f"unused{place}"]
        )
    path = tmp_path / "odd.onnx"
    onnx.save(model, str(path))
    short, full = call(path), call(path, "--all")
    assert "and 5 more (--all shows them)" in short.stdout
    assert "odd7" not in short.stdout
    assert "odd7" in full.stdout


def test_json(save: Callable[[str], Path]) -> None:
    path = save("uint8-zero-point-128")
    result = call(path, "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert (record["model"], record["target"], record["tensorrt"]) == (str(path), "tensorrt", "11")
    (finding,) = record["findings"]
    assert (finding["rule"], finding["refused_by_importer"]) == ("GRID-ZERO-POINT", True)
    clean = call(save("conv-signed"), "--json", "--target", "ort-cpu")
    assert clean.exit_code == 0
    assert json.loads(clean.stdout)["findings"] == []


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    """Node names are anything; rich would take [red] for a colour."""
    model = CASES["bias-int32"].model()
    for node in model.graph.node:
        node.name = f"[red]{node.name}[/]"
    path = tmp_path / "[bold]odd.onnx"
    onnx.save(model, str(path))
    result = call(path)
    assert result.exit_code == 1
    assert "[red]" in result.stdout
    assert "[bold]odd.onnx" in result.stdout


@pytest.mark.parametrize("id", sorted(rules()))
def test_every_rule_is_explained(id: str) -> None:
    result = call("--explain", id.lower())
    assert result.exit_code == 0
    rule = rules()[id]
    text = " ".join(result.stdout.split())
    assert rule.title in text
    assert rule.explanation in text
    assert rule.remedy in text
    assert len(rule.explanation) > 80, "a paragraph"


def test_rules_are_listed() -> None:
    result = call("--rules")
    assert result.exit_code == 0
    assert all(id in result.stdout for id in rules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model was given"),
        (["absent.onnx"], "no such file"),
        (["--explain", "GRID-ZERO"], "did you mean GRID-ZERO-POINT?"),
        (["absent.onnx", "--target", "tflite"], "choose from"),
        (["absent.onnx", "--tensorrt", "newest"], "is not a version"),
        (["absent.onnx", "--target", "ort-cpu", "--dla"], "has no DLA"),
    ],
)
def test_what_a_user_can_fix_is_one_line(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
