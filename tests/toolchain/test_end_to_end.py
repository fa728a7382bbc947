"""One small recipe from teacher to report: what a user finds at the end, and that it can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deploy.bundle import Bundle
from deploy.sessions.ort import OrtCpuSession
from toolchain.chain import run_recipe
from toolchain.models import registry
from toolchain.recipe.schema import Recipe
from toolchain.structure.cost import network_macs, network_parameters

ROOT = Path(__file__).parents[2]
TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.01, "warmup_epochs": 0}
ARGS = {"depth": 8, "in_channels": 1, "width": 4, "classes": 4}
STAGES: list[dict[str, Any]] = [
    {"stage": "teacher"},
    {"stage": "pqk-prune", "mask_every_steps": 1, **TRAIN},
    {"stage": "pqk-distil", **TRAIN},
    {"stage": "slim"},
    {"stage": "recover", **TRAIN},
    {"stage": "export", "samples": 4},
    {"stage": "report", "latency_s": 0.01, "latency_runs": 20},
]


def make_data(folder: Path) -> Path:
    """Four classes, told apart by which quarter of the image is bright."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 80), ("test", 20)):
        labels = np.arange(count) % 4
        images = random.integers(0, 120, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(folder / "quarters.npz", **arrays)
    return folder / "quarters.npz"


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    save_file(registry.build("cifar_resnet", **ARGS).state_dict(), folder / "t.safetensors")
    return {
        "name": "quarters",
        "seed": 3,
        "threads": 1,
        "precision": "float32",
        "model": {
            "builtin": "cifar_resnet",
            "args": ARGS,
            "checkpoint": str(folder / "t.safetensors"),
        },
        "data": {"kind": "npz", "root": str(make_data(folder)), "validation": 0.2},
        "structure": {"allocation": "macs", "branches": True},
        "goals": {"macs": 0.5},
        "stages": STAGES,
    }


@pytest.fixture(scope="module")
def finished(sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder --out after one whole run."""
    out = tmp_path_factory.mktemp("runs")
    assert run_recipe(Recipe.model_validate(sections), out=out, allow_missed=False) == 0
    return out


def result(out: Path) -> Path:
    (folder,) = [path for path in out.iterdir() if path.name.startswith("quarters-")]
    return folder


def report(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((result(out) / "report.json").read_text())
    return record


def test_the_report_has_its_stable_keys(finished: Path) -> None:
    record = report(finished)
    for who in ("teacher", "student"):
        numbers = record[who]
        assert 0 <= numbers["top1"] <= 100
        for key in ("parameters", "macs", "size_bytes"):
            assert isinstance(numbers[key], int) and numbers[key] > 0
        assert 0 < numbers["latency_ms"]["p50"] <= numbers["latency_ms"]["p90"]
        path = result(finished) / numbers["onnx"]
        assert not Path(numbers["onnx"]).is_absolute() and path.is_file()
        assert path.stat().st_size == numbers["size_bytes"]
    teacher = registry.build("cifar_resnet", **ARGS)
    assert record["teacher"]["macs"] == network_macs(teacher, (1, 8, 8))
    assert record["teacher"]["parameters"] == network_parameters(teacher)
    assert record["student"]["macs"] <= 0.5 * record["teacher"]["macs"]
    share = record["student"]["macs"] / record["teacher"]["macs"]
    assert record["goals"] == {"macs": {"asked": 0.5, "reached": share, "met": True}}
    assert [stage["name"] for stage in record["stages"]] == [s["stage"] for s in STAGES[:-1]]
    assert "quarters" in (result(finished) / "report.md").read_text()
    logs = {path.name.rsplit("-", 1)[0] for path in (result(finished) / "logs").iterdir()}
    assert logs == {"pqk-prune", "pqk-distil", "recover"}
    stages = json.loads((result(finished) / "report.json").read_text())["stages"]
    named = [stage["log"] for stage in stages if "log" in stage]
    assert sorted(named) == sorted(path.name for path in (result(finished) / "logs").iterdir())
    assert [name.rsplit("-", 1)[0] for name in named] == ["pqk-prune", "pqk-distil", "recover"]


def test_the_bundle_verifies_and_is_what_was_reported(finished: Path) -> None:
    folder = result(finished)
    bundle = Bundle.open(folder / "bundle")
    assert bundle.classes == ("0", "1", "2", "3")
    path = bundle.model_path("ort-cpu")
    assert path == folder / report(finished)["student"]["onnx"]
    session = OrtCpuSession(path)
    assert bundle.verify_samples(session)
    with np.load(finished_data(finished, folder)) as arrays:
        images, labels = arrays["x_test"][:, None], arrays["y_test"]
    logits = session.run({"images": bundle.preprocess(images)})["logits"]
    session.close()
    assert 100 * (logits.argmax(1) == labels).mean() == report(finished)["student"]["top1"]


def finished_data(out: Path, folder: Path) -> Path:
    """The data file, found by what the artifacts say; the report names no path."""
    (teacher,) = (out / "artifacts").glob("teacher-*")
    root = json.loads((teacher / "artifact.json").read_text())["recipe"]["data"]["root"]
    assert json.loads((folder / "report.json").read_text())["recipe"]["data"]["root"] == (
        Path(root).name
    )
    return Path(root)


def test_nothing_shipped_names_a_place_on_this_machine(
    finished: Path, sections: dict[str, Any]
) -> None:
    places = [str(finished), str(ROOT), str(Path(sections["data"]["root"]).parent)]
    files = [path for path in result(finished).rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert not [place for place in places if place.encode() in content], path
    manifest = json.loads((result(finished) / "bundle" / "manifest.json").read_text())
    assert manifest["recipe"]["model"]["checkpoint"] == "t.safetensors"
    assert manifest["seeds"] == {"run": 3, "split": 0}


def test_running_again_makes_nothing_new(
    finished: Path, sections: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def made() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in finished.rglob("*")}

    before = made()
    capsys.readouterr()
    assert run_recipe(Recipe.model_validate(sections), out=finished, allow_missed=False) == 0
    printed = capsys.readouterr()
    assert printed.err.count(": found ") == len(STAGES)
    files = {path: time for path, time in made().items() if Path(path).is_file()}
    assert files == {path: time for path, time in before.items() if Path(path).is_file()}
    assert "top-1" in printed.out and "report.md" in printed.out


def test_a_missed_goal_is_the_exit_status(sections: dict[str, Any], tmp_path: Path) -> None:
    stages = [{"stage": "teacher"}, {"stage": "export", "samples": 2}, STAGES[-1]]
    goals = {"accuracy_drop": -101.0, "parameters": 1.0}
    asked = Recipe.model_validate({**sections, "stages": stages, "goals": goals})
    assert run_recipe(asked, out=tmp_path, allow_missed=False) == 1
    found = report(tmp_path)["goals"]
    assert found["accuracy_drop"] == {"asked": -101.0, "reached": 0.0, "met": False}
    assert found["parameters"] == {"asked": 1.0, "reached": 1.0, "met": True}
    assert run_recipe(asked, out=tmp_path, allow_missed=True) == 0
