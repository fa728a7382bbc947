"""What the plan says is what the network then is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.errors import ConfigError
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.recipe.schema import Recipe
from toolchain.structure.cost import network_macs, network_parameters
from toolchain.structure.decision import decide, goal_of
from toolchain.structure.preflight import plan_recipe
from toolchain.structure.slim import cut, plan_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    file = tmp_path / "data.npz"
    np.savez(
        file,
        x_train=random.integers(0, 255, (40, 8, 8, 1), dtype=np.uint8),
        y_train=np.arange(40) % 4,
        x_test=random.integers(0, 255, (8, 8, 8, 1), dtype=np.uint8),
        y_test=np.arange(8) % 4,
    )
    return file


def recipe(data: Path, goals: dict[str, float], **structure: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "plan",
            "threads": 1,
            "goals": goals,
            "structure": structure,
            "model": {
                "builtin": "cifar_resnet",
                "args": {"depth": 8, "in_channels": 1, "width": 4, "classes": 4},
            },
            "data": {"kind": "npz", "root": str(data)},
        }
    )


def planned(capsys: pytest.CaptureFixture[str], asked: Recipe, cache: Path) -> tuple[int, dict]:
    status = plan_recipe(asked, as_json=True, cache=cache)
    return status, json.loads(capsys.readouterr().out)


def test_plan_of_a_reachable_goal(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = recipe(data, {"macs": 0.5}, allocation="macs", branches=True, importance="taylor")
    status, record = planned(capsys, asked, tmp_path)
    assert status == 0 and record["out_of_reach"] is None
    assert record["planned"]["macs_share"] <= 0.5
    network = trace(registry.build("cifar_resnet", depth=8, in_channels=1, width=4, classes=4))
    assert record["network"]["macs"] == network_macs(network, (1, 8, 8))
    by_name = {group["name"]: group for group in record["groups"]}
    assert by_name["linear"]["reason"] == "network output"
    assert by_name["conv1"]["can_be_cut"] and by_name["conv1"]["channels"] == 4
    assert all(0 <= branch["contribution"] <= 1 for branch in record["branches"])
    assert not (tmp_path / "latency").exists()


def test_goal_out_of_reach_is_status_one(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, record = planned(capsys, recipe(data, {"macs": 0.01}, max_sparsity=0.5), tmp_path)
    assert status == 1 and record["planned"] is None
    assert f"{record['smallest']['macs_share']:.4f}" in record["out_of_reach"]


def test_table_without_a_terminal_is_plain(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = recipe(data, {}, channels={"layer1.*": 2}, drop=["layer3.0"])
    assert plan_recipe(asked, as_json=False, cache=tmp_path) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["layer1.0.conv1"][1:3] == ["4", "2"]
    assert lines["layer3.0.conv1"][1:3] == ["16", "gone"]
    assert "removed" in lines["layer3.0"]
    assert "no: network output" in text


def test_no_goal_is_said(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert plan_recipe(recipe(data, {}), as_json=False, cache=tmp_path) == 0
    assert "no goal" in capsys.readouterr().out


def test_settings_that_contradict_each_other_are_errors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"structure\.branches"):
        plan_recipe(recipe(data, {"macs": 0.5}, branches=True), as_json=True, cache=tmp_path)


@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_decision_costs_what_the_cut_network_costs(
    data: Path, tmp_path: Path, sparsity: float | None
) -> None:
    asked = recipe(data, {"macs": 0.4}, allocation="macs", branches=True)
    network = trace(registry.build("cifar_resnet", depth=14, in_channels=1, width=4)).eval()
    decision = decide(
        network,
        (1, 8, 8),
        asked,
        sparsity=sparsity,
        cache=tmp_path,
        batches=lambda: [(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))],
    )
    chosen = decision.allocation
    removed = {branch.add: branch.kept for branch in chosen.removed}
    slim = cut(network, plan_of(network, decision.groups, chosen.kept, removed))
    model = decision.findings.cost_model
    assert network_macs(slim, (1, 8, 8)) == model.macs(chosen.widths, chosen.removed)
    assert network_parameters(slim) == model.parameters(chosen.widths, chosen.removed)
    if sparsity is None:
        assert network_macs(slim, (1, 8, 8)) <= 0.4 * network_macs(network, (1, 8, 8))


def test_latency_goal_steers_only_where_it_is_measured(data: Path) -> None:
    asked = recipe(data, {"macs": 0.5, "latency": 0.3})
    assert goal_of(asked.structure, asked.goals) == {"macs": 0.5}
    measured = recipe(data, {"macs": 0.5, "latency": 0.3}, allocation="latency", macs=0.6)
    assert goal_of(measured.structure, measured.goals) == {"macs": 0.6, "latency": 0.3}
    told = recipe(data, {"latency": 0.3}, latency=0.2)
    assert goal_of(told.structure, told.goals) == {"latency": 0.2}
