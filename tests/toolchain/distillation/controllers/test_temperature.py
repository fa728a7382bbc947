"""CTKD's learned temperature: it climbs what the student descends, within bounds, little by little."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.controllers.temperature import LearnedTemperature
from toolchain.distillation.lessons import School
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


def school() -> School:
    teacher = FrozenTeacher(linear(0), FLOAT)
    bound = {name: LOSSES.look_up(name).bind() for name in ("kl", "dist", "logit_mse")}
    terms = tuple(Term(name, loss, teacher) for name, loss in bound.items())
    base = {"task": 0.5, "kl": 1.0, "dist": 1.0, "logit_mse": 1.0}
    return School(linear(1), FLOAT, terms=terms, base=base)


def batch() -> Batch:
    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(6) % 5)


def temperature(controller: LearnedTemperature, given: School) -> Tensor:
    return controller.guide(given.lesson(batch())).options["kl"]["temperature"]


def test_losses_with_a_temperature_get_it_and_others_do_not() -> None:
    given = school()
    controller = LearnedTemperature(given)
    options = controller.guide(given.lesson(batch())).options
    assert set(options) == {"kl", "dist"}
    expected = 1 + 20 / (1 + math.exp(-1))
    assert options["kl"]["temperature"].item() == pytest.approx(expected, rel=1e-6)
    assert float(controller.trail()["temperature"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("step", [0, 3, 10])
def test_its_gradient_is_minus_lambda_times_the_plain_one(step: int) -> None:
    given, x = school(), batch()
    controller = LearnedTemperature(given)
    controller.strengths(step, 11, {})
    (theta,) = controller.parameters
    lesson = given.lesson(x)
    value = lesson.value(given.terms[0], temperature=temperature(controller, given))
    (found,) = torch.autograd.grad(value, [theta])

    z_s, z_t = given.network(x.images_BCHW), given.terms[0].teacher.network(x.images_BCHW)

    def plain(theta: Tensor) -> Tensor:
        return kl(z_s, z_t, temperature=1 + 20 * torch.sigmoid(theta))

    (expected,) = torch.autograd.grad(plain(theta), [theta])
    share = (1 - math.cos(math.pi * step / 10)) / 2
    assert found.item() == pytest.approx(-share * expected.item(), rel=1e-5, abs=1e-12)
    assert value.item() == pytest.approx(plain(theta).item(), rel=1e-6)
    assert expected.item() != 0


def test_lambda_rises_from_none_to_all_and_stays() -> None:
    controller = LearnedTemperature(school(), until=0.5)
    seen = []
    for step in range(11):
        assert controller.strengths(step, 11, {})["task"] == 0.5
        seen.append(controller.trail()["lambda"])
    assert seen[0] == 0 and seen[5:] == [1.0] * 6
    assert seen == sorted(seen) and 0 < float(seen[2]) < 0.5


@given(st.floats(-1e4, 1e4), st.floats(0.1, 5), st.floats(0.1, 50))
def test_it_never_leaves_its_bounds(theta: float, low: float, span: float) -> None:
    controller = LearnedTemperature(school(), low=low, span=span)
    with torch.no_grad():
        controller.parameters[0].fill_(theta)
    found = float(controller.trail()["temperature"])
    assert low * (1 - 1e-6) <= found <= (low + span) * (1 + 1e-6)


def test_the_students_step_moves_it_uphill_and_it_travels() -> None:
    given = school()
    objective = DistillationObjective(given, LearnedTemperature(given))
    (update,) = objective.updates
    optimizer = torch.optim.SGD(list(update.parameters), lr=0.1)
    theta = objective.controller.parameters[0]
    before = theta.item()
    for step in (9, 10):
        objective.begin_step(step, 11)
        loss, _ = update.loss(batch())
        optimizer.zero_grad()
        loss.backward(inputs=list(update.parameters))
        optimizer.step()
    assert theta.item() != before
    other_school = school()
    other = LearnedTemperature(other_school)
    other.load_state_dict(objective.controller.state_dict())
    assert torch.equal(other.trail()["temperature"], objective.controller.trail()["temperature"])
    assert {"temperature", "lambda", "strength.kl"} <= set(objective.trail())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"low": 0.0}, "low: 0.0"), ({"span": -1.0}, "span: -1.0"), ({"until": 0.0}, "until: 0.0")],
)
def test_values_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        CONTROLLERS.look_up("temperature").make(school(), options)
    assert "\n" not in str(error.value)


def test_without_a_loss_that_has_one_it_is_refused() -> None:
    teacher = FrozenTeacher(linear(0), FLOAT)
    mse = Term("logit_mse", LOSSES.look_up("logit_mse").bind(), teacher)
    with pytest.raises(ConfigError, match="logit_mse given") as error:
        LearnedTemperature(School(linear(1), FLOAT, terms=(mse,)))
    assert "\n" not in str(error.value)


def test_it_is_found_by_name_with_its_source() -> None:
    entry = CONTROLLERS.look_up("temperature")
    assert "2211.16231" in entry.source and set(entry.options) == {"low", "span", "until"}
