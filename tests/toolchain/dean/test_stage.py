"""The stage ``ddsl-prune`` in a chain: goals met, cut for good, the dean kept beside and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deploy.errors import ConfigError, DataError, StructureError
from toolchain.chain import check_order
from toolchain.recipe.files import content_hash
from toolchain.recipe.reading import load_recipe
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import Artifact, run_stages

OPTIONS = {"probe_every": 3, "probe_size": 12, "held_out": 0.2}
DISTIL = {
    "losses": [
        {"loss": "kl", "strength": 0.5},
        {"loss": "at", "spot": "layer*", "strength": 10.0},
    ],
    "controller": "dean",
    "controller_options": OPTIONS,
}
PRUNE = {
    "stage": "ddsl-prune",
    "epochs": 4,
    "batch_size": 16,
    "lr": 0.02,
    "warmup_epochs": 0,
    "z_every_steps": 4,
    "distil": DISTIL,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of noise with a different mean."""
    random = np.random.default_rng(0)
    labels = np.arange(136) % 4
    images = (random.integers(0, 100, (136, 8, 8)) + 40 * labels[:, None, None]).astype(np.uint8)
    file = tmp_path_factory.mktemp("data") / "shades.npz"
    parts = {"x_train": images[:120], "y_train": labels[:120], "x_test": images[120:]}
    np.savez(file, y_test=labels[120:], **parts)
    return file


def recipe(data: Path, *stages: dict[str, Any], **sections: Any) -> Recipe:
    fields = {
        "name": "chain",
        "precision": "float32",
        "model": {
            "builtin": "cifar_resnet",
            "args": {"depth": 8, "in_channels": 1, "width": 8, "classes": 4},
        },
        "data": {"kind": "npz", "root": str(data), "validation": 0.12},
        "goals": {"macs": 0.45},
        "structure": {"align": 2, "allocation": "macs"},
        "stages": [{"stage": "teacher"}, *stages],
    }
    return Recipe.model_validate({**fields, **sections})


def trails(artifact: Artifact) -> list[dict[str, Any]]:
    lines = (artifact.root / "training.metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "trail"]


@pytest.mark.parametrize("budget", ["projection", "multiplier", "widths"])
def test_the_goal_is_met_exactly_and_the_masked_network_can_be_cut(
    data: Path, tmp_path: Path, budget: str
) -> None:
    made = run_stages(recipe(data, {**PRUNE, "budget": budget}, {"stage": "slim"}), tmp_path)
    teacher = made.find("teacher").metrics["macs"]
    share = made.metrics["macs"] / teacher
    assert 0.3 < share <= 0.45
    masked = made.find("ddsl-prune")
    weights = load_file(masked.root / "model.safetensors")
    assert not any("dean" in name or "admm" in name for name in weights)
    found = trails(masked)
    assert len(found) == masked_steps(masked)
    assert {"strength.kl", "strength.at@layer1"} <= set(found[0])
    assert ("sparsity_strength.conv1" in found[0]) is (budget != "widths")
    assert (masked.root / "dean.safetensors").exists()


def masked_steps(artifact: Artifact) -> int:
    lines = (artifact.root / "training.metrics.jsonl").read_text().splitlines()
    return int(json.loads(lines[-1])["step"])


def test_without_distillation_it_is_admm_on_the_labels(data: Path, tmp_path: Path) -> None:
    made = run_stages(recipe(data, {**PRUNE, "epochs": 1, "distil": None}), tmp_path)
    assert made.metrics["sparsity"] > 0.2 and not (made.root / "dean.safetensors").exists()


def test_a_quantized_student_is_pruned_through_its_latent_weights(
    data: Path, tmp_path: Path
) -> None:
    quantize = {"stage": "quantize", "bits": 4, "calibration_images": 16}
    made = run_stages(recipe(data, quantize, {**PRUNE, "epochs": 2}, {"stage": "slim"}), tmp_path)
    assert made.metrics["macs"] / made.find("teacher").metrics["macs"] <= 0.45
    assert any("scale_O" in name for name in load_file(made.root / "model.safetensors"))


def test_widths_that_the_recipe_names_leave_nothing_to_a_price(data: Path, tmp_path: Path) -> None:
    structure = {"align": 2, "channels": {"layer1.0.conv1": 4}}
    chain = [{**PRUNE, "epochs": 1, "budget": "widths"}, {"stage": "slim"}]
    made = run_stages(recipe(data, *chain, structure=structure, goals={}), tmp_path)
    weights = load_file(made.root / "model.safetensors")
    assert weights["layer1.0.conv1.weight"].shape[0] == 4
    priced = recipe(data, {**PRUNE, "epochs": 1}, structure=structure, goals={})
    with pytest.raises(ConfigError, match="'projection' without a goal"):
        run_stages(priced, tmp_path)


def test_whole_branches_go_with_the_channels(data: Path, tmp_path: Path) -> None:
    structure = {"align": 8, "allocation": "macs", "branches": True}
    deep = {
        "builtin": "cifar_resnet",
        "args": {"depth": 14, "in_channels": 1, "width": 8, "classes": 4},
    }
    chain = [{**PRUNE, "epochs": 2}, {"stage": "slim"}]
    asked = recipe(data, *chain, structure=structure, model=deep, goals={"macs": 0.5})
    made = run_stages(asked, tmp_path)
    assert made.metrics["macs"] / made.find("teacher").metrics["macs"] <= 0.5
    plan = json.loads((made.find("ddsl-prune").root / "cut.json").read_text())
    assert plan["removed"]


def test_a_dean_of_one_run_is_frozen_in_the_next(data: Path, tmp_path: Path) -> None:
    first = run_stages(recipe(data, {**PRUNE, "epochs": 2}), tmp_path)
    options = {**OPTIONS, "frozen": True, "load": str(first.root / "dean.safetensors")}
    frozen = {**PRUNE, "epochs": 2, "distil": {**DISTIL, "controller_options": options}}
    second = run_stages(recipe(data, frozen), tmp_path)
    one, other = (load_file(a.root / "dean.safetensors") for a in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("dean.held_out_loss" in record for record in trails(second))
    replay = {"log": str(first.root / "training.metrics.jsonl"), "held_out": 0.2}
    again = {**DISTIL, "controller": "replay", "controller_options": replay}
    third = run_stages(recipe(data, {**PRUNE, "epochs": 2, "distil": again}), tmp_path)
    names = [name for name in trails(first)[0] if name.startswith("strength.")]
    for was, now in zip(trails(first), trails(third), strict=True):
        assert all(now[name] == was[name] for name in names)


def test_a_dean_is_looked_for_beside_the_recipe_and_another_one_is_another_stage(
    tmp_path: Path,
) -> None:
    (tmp_path / "dean.safetensors").write_bytes(b"one")
    text = recipe(tmp_path, PRUNE).model_dump(mode="json", exclude_unset=True)
    text["stages"][1]["distil"]["controller_options"] = {"load": "dean.safetensors"}
    text["data"]["root"] = "dean.safetensors"
    (tmp_path / "recipe.yaml").write_text(json.dumps(text))
    loaded = load_recipe(tmp_path / "recipe.yaml")
    stage = loaded.stages[1]
    assert stage.distil.controller_options["load"] == tmp_path / "dean.safetensors"  # type: ignore[attr-defined]
    before = content_hash(stage)
    (tmp_path / "dean.safetensors").write_bytes(b"other")
    assert "" != before != content_hash(stage)


def test_a_held_out_part_too_small_is_one_line(data: Path, tmp_path: Path) -> None:
    options = {"probe_every": 2, "probe_size": 64, "held_out": 0.1}
    small = {**PRUNE, "distil": {**DISTIL, "controller_options": options}}
    with pytest.raises((ConfigError, DataError), match="at least 64") as caught:
        run_stages(recipe(data, small), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_goal_out_of_reach_stops_before_any_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="out of reach"):
        run_stages(recipe(data, PRUNE, goals={"macs": 0.001}), tmp_path)


def test_it_is_a_pruning_stage_like_the_others(data: Path) -> None:
    check_order(recipe(data, PRUNE, {"stage": "slim"}).stages)
    with pytest.raises(ConfigError, match="masked there already"):
        check_order(recipe(data, PRUNE, {"stage": "prune"}).stages)
