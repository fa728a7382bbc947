"""A stage whose method has changed is another stage; all others are found again."""

from __future__ import annotations

import inspect
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


OF_A_DEAN = {
    "held_out": 0.1,
    "probe_every": None,
    "probe_size": 128,
    "lr": 0.01,
    "look_ahead": 0.01,
    "alpha_max": 2.0,
    "beta_max": 2.0,
    "ema": None,
    "keep_sum": False,
    "trust_probes": 6,
    "frozen": False,
    "load": None,
}
# A stage's key holds what a recipe gives, and not the defaults: with another default and the same version,
# what was trained with the old one would be found for the new.
DEFAULTS: dict[str, tuple[int, dict[str, Any]]] = {
    "anti": (3, OF_A_DEAN),
    "dean": (3, OF_A_DEAN),
    "ramp": (1, {"start": 0.0, "end": 1.0, "until": 1.0, "shape": "linear"}),
    "replay": (1, {"held_out": 0.1}),
    "spot-adaptive": (
        2,
        {"decisions": "policy", "gamma": None, "homo": None, "tau": 5.0, "tau_end": 5.0},
    ),
    "temperature": (1, {"low": 1.0, "span": 20.0, "until": 1.0}),
    "ab": (1, {"margin": 1.0}),
    "cc": (1, {"dimensions": 128}),
    "crd": (
        1,
        {
            "samples": 0,
            "negatives": 16384,
            "dimensions": 128,
            "temperature": 0.07,
            "momentum": 0.5,
            "other_classes": True,
        },
    ),
    "dist": (1, {"inter": 1.0, "intra": 1.0, "temperature": 1.0}),
    "dkd": (1, {"alpha": 1.0, "beta": 2.0, "temperature": 4.0}),
    "ft": (1, {"share": 0.5, "paraphraser_epochs": 30, "paraphraser_lr": 0.01}),
    "kl": (1, {"temperature": 4.0}),
    "ofa": (2, {"gamma": 1.0, "form": "code", "temperature": 1.0}),
    "rkd": (1, {"distance": 25.0, "angle": 50.0}),
    "vid": (1, {"variance": 5.0}),
}


def given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not inspect.Parameter.empty}


def test_a_default_changes_only_with_its_version() -> None:
    entries = (*CONTROLLERS.values(), *LOSSES.values())
    found = {one.name: (one.version, given(one.options)) for one in entries if given(one.options)}
    changed = {name for name in found.keys() | DEFAULTS if found.get(name) != DEFAULTS.get(name)}
    assert not changed, "count the version up where a default has changed, and write both here"
