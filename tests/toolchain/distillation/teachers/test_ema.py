"""The student's moving average: its numbers, its facts, its state, and that it never pulls back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.lessons import School
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.teachers.ema import AveragedTeacher
from toolchain.distillation.teachers.teacher import MovingTeacher
from toolchain.distillation.terms import Term
from toolchain.graph import trace
from toolchain.quantization.attach import Quantization, attach_quantizers
from toolchain.structure.masks import views_of
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))


def move(net: nn.Module, step: int) -> None:
    with torch.no_grad():
        for place, tensor in enumerate(net.state_dict().values()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * (step + 1) + 0.01 * place)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_it_is_the_average_of_the_paper_with_a_ramp(decay: float) -> None:
    net = network()
    teacher = AveragedTeacher(net, FLOAT, decay)
    key = "0.weight"
    mean, variance = net.state_dict()[key].clone(), net.state_dict()["1.running_var"].clone()
    for step in range(6):
        teacher.follow(step)
        d = min(decay, step / (9 + step))
        mean = d * mean + (1 - d) * net.state_dict()[key]
        variance = d * variance + (1 - d) * net.state_dict()["1.running_var"]
        torch.testing.assert_close(teacher.state_dict()[key], mean)
        torch.testing.assert_close(teacher.state_dict()["1.running_var"], variance)
        move(net, step)


def test_before_the_first_step_it_is_the_student() -> None:
    net = network().eval()
    teacher = AveragedTeacher(net, FLOAT, 0.99)
    teacher.follow(0)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(teacher.observe(x)["logits"], net(x).detach())


def test_neither_following_nor_observing_moves_the_student() -> None:
    net = network().train()
    teacher = AveragedTeacher(net, FLOAT, 0.9)
    before = copy.deepcopy(net.state_dict())
    teacher.follow(1)
    found = teacher.observe(torch.randn(4, 3, 6, 6) + 3, ["1", "logits"])
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(feature.requires_grad for feature in found.values())


def test_a_pending_gradient_of_the_student_survives_a_step_of_the_average() -> None:
    net = network().train()
    teacher = AveragedTeacher(net, FLOAT, 0.9)
    x = torch.randn(4, 3, 6, 6)
    z_s_BC: Tensor = net(x)
    teacher.follow(3)
    (z_s_BC - teacher.observe(x)["logits"]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_masks_are_the_students_of_the_moment() -> None:
    net = trace(network()).eval()
    attach_quantizers(net, Quantization())
    teacher = AveragedTeacher(net, FLOAT, 0.9)
    with torch.no_grad():
        for view in views_of(net.get_submodule("0")):
            view.keep_O[:2] = False
    x = torch.randn(2, 3, 6, 6)
    teacher.follow(1)
    assert not teacher.observe(x, ["0"])["0"][:, :2].any()
    assert teacher.observe(x, ["0"])["0"][:, 2:].any()


def test_its_state_comes_back_to_the_last_bit() -> None:
    net = network()
    assert isinstance(AveragedTeacher(net, FLOAT, 0.9), MovingTeacher)
    one = AveragedTeacher(net, FLOAT, 0.9)
    for step in range(3):
        move(net, step)
        one.follow(step)
    saved = copy.deepcopy(one.state_dict())
    two = AveragedTeacher(net, FLOAT, 0.9)
    two.load_state_dict(saved)
    for step in range(3, 5):
        move(net, step)
        one.follow(step)
        two.follow(step)
    assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())


def test_an_objective_moves_it_and_resumes_it() -> None:
    def course() -> tuple[nn.Module, AveragedTeacher, DistillationObjective]:
        net = network().train()
        teacher = AveragedTeacher(net, FLOAT, 0.5)
        school = School(net, FLOAT, terms=(Term("kl", kl, teacher),), base={"task": 1.0, "kl": 1.0})
        return net, teacher, DistillationObjective(school, FixedStrength(school))

    def train(net: nn.Module, objective: DistillationObjective, steps: range) -> None:
        for step in steps:
            objective.begin_step(step, 6)
            random = torch.Generator().manual_seed(step)
            images = torch.randn(4, 3, 6, 6, generator=random)
            net.zero_grad()
            loss, _ = objective.loss(Batch(images, torch.arange(4)))
            loss.backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad

    net, teacher, objective = course()
    train(net, objective, range(3))
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(objective.state_dict())
    train(net, objective, range(3, 6))
    again, same, resumed = course()
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, resumed, range(3, 6))
    for one, other in ((net, again), (teacher.network, same.network)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key])
    assert not torch.equal(net.state_dict()["0.weight"], teacher.network.state_dict()["0.weight"])
