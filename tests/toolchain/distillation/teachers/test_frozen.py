"""Teachers: never changed, and no gradient through them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploy.errors import ConfigError
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.training.precision import choose_precision


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.parametrize("name", ["float32", "bf16"])
def test_a_frozen_teacher_keeps_every_byte(name: str) -> None:
    net = network().train()
    teacher = FrozenTeacher(net, choose_precision(name, "cpu"))  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()  # a parent module's train() must not reach it
    found = teacher.observe(torch.randn(8, 3, 6, 6) + 3, ["logits", "1"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert set(found) == {"logits", "1"}
    assert not any(x.requires_grad for x in found.values())
    assert not any(p.requires_grad for p in net.parameters())


def test_its_logits_are_the_networks_in_eval_mode() -> None:
    net, x = network().eval(), torch.randn(2, 3, 6, 6)
    expected = net(x).detach()
    teacher = FrozenTeacher(net, choose_precision("float32", "cpu"))
    torch.testing.assert_close(teacher.observe(x)["logits"], expected)


def test_a_spot_that_it_does_not_reach_is_refused() -> None:
    net = network()
    net[0].spare = nn.ReLU()
    teacher = FrozenTeacher(net, choose_precision("float32", "cpu"))
    with pytest.raises(ConfigError, match=r"'0\.spare' is not reached"):
        teacher.observe(torch.randn(2, 3, 6, 6), ["0.spare"])


def test_its_features_can_be_kept_for_a_backward_pass() -> None:
    teacher = FrozenTeacher(network(), choose_precision("float32", "cpu"))
    w = torch.ones(5, requires_grad=True)
    (w * teacher.observe(torch.randn(2, 3, 6, 6))["logits"]).square().sum().backward()
    assert w.grad is not None
