"""Controllers: the strength of each term over a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deploy.errors import ConfigError
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.controllers.ramp import RampStrength
from toolchain.distillation.lessons import School

BASE = {"task": 0.25, "kl": 0.8}
SCHOOL = School(nn.Identity(), base=BASE)


def test_fixed_is_fixed() -> None:
    fixed = FixedStrength(SCHOOL)
    assert fixed.strengths(0, 10, {}) == fixed.strengths(9, 10, {}) == BASE


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_ramp_goes_from_start_to_end_and_leaves_the_task(shape: str) -> None:
    ramp = RampStrength(SCHOOL, start=0.5, end=2.0, shape=shape)  # type: ignore[arg-type]
    assert ramp.strengths(0, 11, {}) == pytest.approx({"task": 0.25, "kl": 0.4})
    assert ramp.strengths(5, 11, {}) == pytest.approx({"task": 0.25, "kl": 1.0})
    assert ramp.strengths(10, 11, {}) == pytest.approx({"task": 0.25, "kl": 1.6})


def test_linear_and_cosine_at_a_quarter() -> None:
    linear, cosine = RampStrength(SCHOOL), RampStrength(SCHOOL, shape="cosine")
    assert linear.strengths(1, 5, {})["kl"] == pytest.approx(0.8 * 0.25)
    assert cosine.strengths(1, 5, {})["kl"] == pytest.approx(0.8 * math.sin(math.pi / 8) ** 2)


def test_a_ramp_holds_after_until() -> None:
    ramp = RampStrength(SCHOOL, until=0.5)
    assert ramp.strengths(5, 11, {})["kl"] == ramp.strengths(10, 11, {})["kl"] == 0.8


@given(st.integers(1, 20), st.floats(0, 3), st.floats(0, 3), st.floats(0.01, 1))
def test_a_ramp_stays_between_its_ends(total: int, start: float, end: float, until: float) -> None:
    ramp = RampStrength(SCHOOL, start=start, end=end, until=until, shape="cosine")
    low, high = sorted((0.8 * start, 0.8 * end))
    for step in range(total):
        assert low - 1e-9 <= ramp.strengths(step, total, {})["kl"] <= high + 1e-9


@pytest.mark.parametrize("bad", [{"until": 0.0}, {"until": 1.1}, {"start": -1.0}, {"shape": "x"}])
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="controller_options"):
        CONTROLLERS.look_up("ramp").make(SCHOOL, bad)


def test_an_unknown_controller_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"'fixed'.*'ramp'.*did you mean 'ramp'"):
        CONTROLLERS.look_up("rmp")


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'start'"):
        CONTROLLERS.look_up("ramp").make(SCHOOL, {"strat": 1.0})
