"""Several targets from one student: at the end of a run, and again from what the run left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from deploy.bundle import Bundle
from deploy.errors import (
    CheckpointError,
    ConfigError,
    MissingDependency,
    StorageError,
    VerificationError,
)
from deploy.manifest import MANIFEST
from deploy.sessions.ort import OrtCpuSession
from deploy.targets import TARGETS
from toolchain import checkpoint
from toolchain.chain import run_recipe
from toolchain.cli import app
from toolchain.quantization.lowered_layers import IntegerLayer
from toolchain.quantization.lowering import lower
from toolchain.recipe.schema import Recipe
from toolchain.shipping.further_targets import export_again


def recipe(folder: Path, **changes: Any) -> Recipe:
    """Noise in two classes: what is exported need not be good."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 8)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 2
    np.savez(folder / "noise.npz", **arrays)
    return Recipe.model_validate(
        {
            "name": "noise",
            "threads": 1,
            "precision": "float32",
            "model": {
                "builtin": "cifar_resnet",
                "args": {"depth": 8, "width": 4, "classes": 2},
            },
            "data": {"kind": "npz", "root": str(folder / "noise.npz"), "validation": 0.2},
            "stages": [
                {"stage": "teacher"},
                {"stage": "quantize"},
                {"stage": "export", "samples": 6},
                {"stage": "report", "latency_s": 0.01, "latency_runs": 10},
            ],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run for every target."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    asked = recipe(folder, target=list(TARGETS))
    assert run_recipe(asked, out=folder / "runs", allow_missed=False) == 0
    (run,) = (folder / "runs").glob("noise-*")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to write into."""
    yield Path(shutil.copytree(made, tmp_path / "run"))


def test_a_run_for_every_target(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    assert bundle.targets == TARGETS
    details = bundle.manifest["details"]["targets"]
    for target in TARGETS:
        model = onnx.load(bundle.model_path(target))
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts == {"producer": "compress-deploy", "recipe": "noise", "target": target}
        assert details[target]["student"]["passed"]
        assert details[target]["grid"] is None, "it was trained on a grid that all have"
        assert details[target]["size_bytes"] == bundle.model_path(target).stat().st_size
    assert details["ort-cpu"]["importer"] is None
    record = json.loads((made / "report.json").read_text())
    assert record["student"]["onnx"] == "bundle/ort-cpu.onnx"
    assert any("tensorrt, tensorrt-fp16" in line for line in record["method"])
    spec = json.loads((made / "bundle/student/spec.json").read_text())
    assert spec["quantization"]["unsigned_steps"] == 127


def test_the_manifest_is_json_for_any_reader(made: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((made / "bundle" / MANIFEST).read_text(), parse_constant=refuse)


def test_all_graphs_compute_the_same(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    images = bundle.preprocess(bundle.samples()[0])
    student, _ = checkpoint.load(bundle.folder / "student")
    with torch.no_grad():
        want = student(torch.from_numpy(images)).numpy()
    for target, share in (("ort-cpu", 1e-5), ("tensorrt", 1e-5), ("tensorrt-fp16", 0.05)):
        session = OrtCpuSession(bundle.model_path(target), disable_fusion=True)
        got = session.run({"images": images})["logits"]
        session.close()
        assert np.abs(got - want).max() <= share * np.abs(want).max()


def test_an_old_student_is_put_on_the_other_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe(tmp_path)
    assert run_recipe(asked, out=tmp_path / "runs", allow_missed=False) == 0
    (run,) = (tmp_path / "runs").glob("noise-*")
    assert Bundle.open(run / "bundle").targets == ("ort-cpu",)
    (graph,) = export_again(run, ["tensorrt"])
    assert graph.grid is not None and graph.grid
    assert any("trained with 255 steps" in note for note in graph.notes)
    bundle = Bundle.open(run / "bundle")
    assert bundle.targets == ("ort-cpu", "tensorrt")
    assert bundle.manifest["details"]["targets"]["tensorrt"]["grid"]["passed"]
    assert bundle.manifest["details"]["verified"], "what was there stays"


def test_the_same_again_is_the_same(run: Path) -> None:
    before = (run / "bundle" / "tensorrt.onnx").read_bytes()
    (graph,) = export_again(run, ["tensorrt"])
    assert graph.path == run / "bundle" / "tensorrt.onnx"
    assert graph.path.read_bytes() == before
    assert not any("replaced" in note for note in graph.notes)


def test_layers_stay_float_where_asked(run: Path) -> None:
    kept = ["first", "layer2.0.*", "last"]
    (graph,) = export_again(run, ["tensorrt"], out=run / "kept", keep_float=kept)
    assert [path.name for path in (run / "kept").iterdir()] == ["tensorrt.onnx"]
    network, _ = checkpoint.load(run / "bundle" / "student", kept)
    integer = {
        name
        for name, module in lower(network, "tensorrt").named_modules()
        if isinstance(module, IntegerLayer)
    }
    stored = {
        tensor.name.removesuffix(".q_OX")
        for tensor in onnx.load(graph.path).graph.initializer
        if tensor.name.endswith(".q_OX")
    }
    assert stored == integer
    assert "layer1.0.conv1" in integer
    assert not {"conv1", "layer2.0.conv1", "layer2.0.conv2"} & integer
    facts = {e.key: e.value for e in onnx.load(graph.path).metadata_props}
    assert facts["keep_float"] == "first, layer2.0.*, last"
    # Its first input is read as it is, not put on a grid.
    first = next(n for n in onnx.load(graph.path).graph.node if n.op_type == "Conv")
    assert first.input[0] == "images"


def test_what_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(run.rglob("*"))
    with pytest.raises(ConfigError, match="holds a graph for tensorrt already"):
        export_again(run, ["tensorrt"], keep_float=["first"])
    with pytest.raises(ConfigError, match="keep_float: 'nope' matches no layer"):
        export_again(run, ["tensorrt"], out=tmp_path / "out", keep_float=["nope"])
    with pytest.raises(StorageError, match="holds no bundle"):
        export_again(tmp_path, ["tensorrt"])
    with pytest.raises(ConfigError, match="is a bundle, and a file that its manifest"):
        export_again(run, ["tensorrt"], out=run / "bundle", keep_float=["first"])
    (run / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        export_again(run, ["tensorrt"], out=run / "file")
    (run / "file").unlink()
    assert sorted(run.rglob("*")) == files
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_student(run: Path) -> None:
    manifest = json.loads((run / "bundle" / MANIFEST).read_text())
    shutil.rmtree(run / "bundle" / "student")
    manifest["files"] = {k: v for k, v in manifest["files"].items() if "student" not in k}
    (run / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"no student/spec\.json"):
        export_again(run, ["tensorrt"])


def test_a_graph_that_the_importer_refuses_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.engines import importer

    problem = importer.Problem("INVALID_NODE", "not this one", "Conv", "conv1/Conv")
    answer = importer.Import(False, (problem,), (), "an importer")
    monkeypatch.setattr(importer, "import_onnx", lambda path: answer)
    before = (run / "bundle" / MANIFEST).read_bytes()
    with pytest.raises(VerificationError, match=r"an importer refuses .*conv1/Conv.*not this one"):
        export_again(run, ["tensorrt"])
    assert (run / "bundle" / MANIFEST).read_bytes() == before


def test_every_file_is_said_with_its_size_times_and_decisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe(tmp_path, target=["ort-cpu", "tensorrt"]), out=tmp_path, allow_missed=True)
    said = capsys.readouterr().err.splitlines()
    bundle = Bundle.open(next(tmp_path.glob("noise-*")) / "bundle")
    files = {name: bundle.model_path(name) for name in ("ort-cpu", "tensorrt")}
    for name, path in {"teacher": bundle.folder / "teacher.onnx", **files}.items():
        start = f"{name}: {path.stat().st_size:,} bytes, written in "
        (line,) = (line for line in said if line.startswith(start))
        assert "100.00% of 8 decisions are the network's, proved in " in line


def test_an_absent_importer_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.engines import importer

    def absent(path: Path) -> None:
        raise MissingDependency("install it")

    monkeypatch.setattr(importer, "import_onnx", absent)
    (graph,) = export_again(run, ["tensorrt"])
    assert graph.importer == {"accepted": None, "because": "install it"}
    assert any("importer has not seen" in note for note in graph.notes)


def test_the_verb(run: Path) -> None:
    out = run / "out"
    result = CliRunner().invoke(
        app, ["export", str(run), "--target", "tensorrt, ort-cpu", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) == {"tensorrt", "ort-cpu"}
    assert {path.name for path in out.iterdir()} == {"tensorrt.onnx", "ort-cpu.onnx"}
    table = CliRunner().invoke(app, ["export", str(run), "--target", "tensorrt"])
    assert table.exit_code == 0
    assert "6 of 6" in table.stdout
    for given in ("tensort", "tensorrt,tensorrt", ""):
        wrong = CliRunner().invoke(app, ["export", str(run), "--target", given])
        assert wrong.exit_code == 1
        assert "accepted are ort-cpu, tensorrt, tensorrt-fp16" in wrong.stderr


def test_static_quantization_has_a_form_for_tensorrt(tmp_path: Path) -> None:
    stages = [
        {"stage": "teacher"},
        {"stage": "export", "samples": 2, "static_int8": "minmax", "calibration_images": 16},
    ]
    asked = recipe(tmp_path, target="tensorrt", stages=stages)
    assert run_recipe(asked, out=tmp_path / "runs", allow_missed=False) == 0
    (exported,) = (tmp_path / "runs" / "artifacts").glob("export-*")
    bundle = Bundle.open(exported / "bundle")
    assert bundle.targets == ("ort-cpu", "tensorrt")
    stored = {
        target: {t.data_type for t in onnx.load(bundle.model_path(target)).graph.initializer}
        for target in bundle.targets
    }
    assert onnx.TensorProto.UINT8 in stored["ort-cpu"]
    assert onnx.TensorProto.UINT8 not in stored["tensorrt"]
    assert onnx.TensorProto.INT32 not in stored["tensorrt"]
