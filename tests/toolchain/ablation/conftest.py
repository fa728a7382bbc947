"""Outcomes that nothing was run for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from toolchain.ablation.outcome import AS_TRAINED, Outcome
from toolchain.runs.training_logs import Course, Trained


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    def make(
        variant: str,
        seed: int,
        top1: float,
        *,
        steps: int = 100,
        macs: int = 1000,
        trail: dict[str, Course] | None = None,
        **more: Any,
    ) -> Outcome:
        given: dict[str, Any] = {
            "variant": variant,
            "seed": seed,
            "test_top1": top1,
            "validation_top1": top1 + 1,
            "teacher_top1": 95.0,
            "tested": AS_TRAINED,
            "test_images": 10_000,
            "macs": macs,
            "parameters": 500,
            "seconds": 12.0,
            "trained": (Trained("recover", steps, 128, 5000.0, trail or {}),),
            "artifact": f"recover-{variant}-{seed}",
            "precision": "float32 on the CPU",
            "data": "0123456789abcdef",
            "date": "2026-09-01T12:00:00+00:00",
        }
        return Outcome(**{**given, **more})

    return make
