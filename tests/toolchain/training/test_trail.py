"""Every step's numbers reach the log in order and as they were, however late they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from toolchain.training.metrics_log import MetricsLog
from toolchain.training.trail import Trail


def test_numbers_are_those_of_their_step(tmp_path: Path) -> None:
    trail, moving = Trail(), torch.zeros(1, requires_grad=True)
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            with torch.no_grad():
                moving += 0.25  # in place, as an optimizer moves a parameter
            trail.note(step, {"strength.kl": 0.1 * step, "temperature": moving}, events=True)
            if step == 3:
                trail.write(log)
        trail.write(log)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [
        {"kind": "trail", "step": s, "strength.kl": 0.1 * s, "temperature": 0.25 * s}
        for s in range(1, 6)
    ]


def test_nothing_noted_is_nothing_written(tmp_path: Path) -> None:
    trail, path = Trail(), tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        trail.note(1, {}, events=True)
        trail.write(log)
    assert path.read_text() == ""


def test_noting_reads_nothing(tmp_path: Path) -> None:
    trail = Trail()
    trail.note(1, {"share": torch.ones((), device="meta")}, events=False)
    with MetricsLog(None) as log, pytest.raises(NotImplementedError):
        trail.write(log)
