"""What a log says a stage spent, and how a controller's numbers went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolchain.runs.artifacts import Artifact
from toolchain.runs.training_logs import Course, never, trail_of, trained


def artifact(folder: Path, rows: list[dict[str, Any]] | None) -> Artifact:
    (folder / "artifact.json").write_text(json.dumps({"config": {"batch_size": 32}}))
    if rows is not None:
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / "training.metrics.jsonl").write_text("".join(lines))
    return Artifact(folder, "k", "recover", {})


def test_steps_and_trail_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"kind": "trail", "step": step, "strength.kl": step / 10, "policy_loss": 3.0}
        for step in range(1, 21)
    ]
    rows[4]["distillability.kl"] = 0.5  # at a probe only
    rows[7]["distillability.kl"] = None  # not finite
    rows.append({"kind": "epoch", "step": 20, "images_per_s": 640.0})
    found = trained(artifact(tmp_path, rows))
    assert found is not None
    assert (found.stage, found.steps, found.batch_size) == ("recover", 20, 32)
    assert found.images_per_s == 640.0
    first, last, mean = found.trail["strength.kl"]
    assert (round(first, 9), round(last, 9), round(mean, 9)) == (0.15, 1.95, 1.05)
    assert found.trail["distillability.kl"] == Course(0.5, 0.5, 0.5)
    assert "policy_loss" not in found.trail


def test_what_a_dean_never_did_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "kind": "trail",
            "step": step,
            "dean.fallback": 0.0,
            "dean.judged": 0.0,
            "dean.moved": step > 3,
        }
        for step in range(1, 9)
    ]
    artifact(tmp_path, rows)
    assert never(trail_of(tmp_path / "training.metrics.jsonl")) == ()
    artifact(tmp_path, rows[:3])
    assert never(trail_of(tmp_path / "training.metrics.jsonl")) == ("moved", "judged")
    artifact(tmp_path, [{"kind": "trail", "step": 1, "dean.fallback": 0.0}])
    assert never(trail_of(tmp_path / "training.metrics.jsonl")) == ()


def test_a_stage_that_did_not_train_spent_nothing(tmp_path: Path) -> None:
    assert trained(artifact(tmp_path, None)) is None
