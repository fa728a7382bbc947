"""Replayed strengths are those of the log, mirrored ones lie on the other side of the recipe's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import ConfigError
from toolchain.dean.controller import DeanController
from toolchain.dean.replay import AntiDean, ReplayStrength
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.lessons import TASK, School
from toolchain.training.metrics_log import MetricsLog

Make = Callable[..., School]


def write(path: Path, steps: int, names: tuple[str, ...] = ("task", "good", "bad")) -> str:
    with MetricsLog(path) as log:
        for step in range(steps):
            log.write("step", step + 1, {"loss": 1.0})
            strengths = {f"strength.{n}": 0.1 * step + k for k, n in enumerate(names)}
            log.write_trail(step + 1, {**strengths, "dean.fallback": 0.0})
    return str(path)


def test_the_log_is_replayed_step_by_step(make_school: Make, tmp_path: Path) -> None:
    replay = ReplayStrength(make_school(), log=write(tmp_path / "log.jsonl", 4))
    for step in (2, 0, 3):
        expected = {"task": 0.1 * step, "good": 0.1 * step + 1, "bad": 0.1 * step + 2}
        assert replay.strengths(step, 4, {}) == pytest.approx(expected)
    with pytest.raises(
        ConfigError, match="has 4 steps and this training 3; accepted is a log of as"
    ):
        replay.strengths(0, 3, {})
    with pytest.raises(
        ConfigError, match="has 4 steps and this training 9; accepted is a log of as"
    ):
        replay.strengths(4, 9, {})


def test_logs_that_cannot_be_replayed(make_school: Make, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not json")
    (tmp_path / "plain.jsonl").write_text(
        json.dumps({"kind": "step", "step": 1, "loss": 2.0}) + "\n"
    )
    for path, message in (
        (
            write(tmp_path / "other.jsonl", 2, ("task", "kl")),
            r"accepted are those of \['bad', 'good'",
        ),
        (str(tmp_path / "missing"), "cannot be read as a metrics log"),
        (str(tmp_path / "text"), "cannot be read as a metrics log"),
        (str(tmp_path / "plain.jsonl"), "has no trail"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            ReplayStrength(make_school(), log=path)
        assert "\n" not in str(caught.value)


def test_anti_is_the_mirror_image(make_school: Make) -> None:
    options = {"probe_every": 1, "probe_size": 128, "lr": 5e-3}
    base = make_school().base
    dean, anti = DeanController(make_school(), **options), AntiDean(make_school(), **options)
    for step in range(16):
        advised, given = dean.strengths(step, 16, {}), anti.strengths(step, 16, {})
        assert given[TASK] == advised[TASK] == 1.0
        for name in ("good", "bad"):
            assert given[name] == pytest.approx(2 * base[name] - advised[name])
    assert given["bad"] > 0.6 > 0.4 > given["good"]
    assert anti.trail() == dean.trail()


def test_it_never_asks_for_less_than_nothing(make_school: Make) -> None:
    anti = AntiDean(make_school(), probe_every=1, probe_size=128, lr=0.1, alpha_max=9.0)
    strengths = [anti.strengths(step, 20, {}) for step in range(20)]
    assert min(min(s.values()) for s in strengths) == 0.0


def test_a_recipe_gives_anti_the_options_of_the_dean() -> None:
    assert CONTROLLERS.look_up("anti").options == CONTROLLERS.look_up("dean").options
    assert CONTROLLERS.look_up("replay").held_out
