"""A stage whose method has changed is another stage; all others are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolchain.analysis.stage import Analyze
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.versions import changed_methods
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import RunContext
from toolchain.stages import PqkDistil, Recover, Slim

PLAIN: dict[str, Any] = {"controller": "fixed", "losses": [{"loss": "kl"}]}


def recover(**distil: Any) -> Recover:
    return Recover.model_validate({"distil": {**PLAIN, **distil}})


def test_methods_in_their_first_version_are_not_mentioned() -> None:
    for stage in (Slim(), recover(), Recover.model_validate({"distil": None})):
        assert changed_methods(stage) == ""


def test_changed_methods_are_found_wherever_a_stage_distils(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ramp, at = CONTROLLERS.look_up("ramp"), LOSSES.look_up("at")
    monkeypatch.setitem(CONTROLLERS._entries, "ramp", replace(ramp, version=3))
    monkeypatch.setitem(LOSSES._entries, "at", replace(at, version=2))
    distil = {"controller": "ramp", "losses": [{"loss": "kl"}, {"loss": "at"}, {"loss": "at"}]}
    assert changed_methods(recover(**distil)) == "at 2, ramp 3"
    assert changed_methods(PqkDistil.model_validate({"pretrained": distil})) == "at 2, ramp 3"
    assert changed_methods(Analyze(teaching=recover(**distil))) == "at 2, ramp 3"
    assert changed_methods(recover()) == ""


def test_a_new_version_is_another_artifact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "t", "model": {"builtin": "mlp"}, "data": {"kind": "digits"}}
    )
    context = RunContext(recipe, tmp_path)
    before = recover(controller="ramp").fingerprint(context), recover().fingerprint(context)
    ramp = CONTROLLERS.look_up("ramp")
    monkeypatch.setitem(CONTROLLERS._entries, "ramp", replace(ramp, version=ramp.version + 1))
    after = recover(controller="ramp").fingerprint(context), recover().fingerprint(context)
    assert after[0] != before[0] and after[1] == before[1]
