"""The teacher inside the student: what it computes, and that looking at it changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from toolchain.distillation.teachers.in_network import InNetworkTeacher
from toolchain.graph import trace
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import (
    attach_teacher_norms,
    attach_views,
    latent_parameter,
    weight_view,
    weighted,
)
from toolchain.structure.masks import views_of
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.act, self.drop, self.fc = nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(x + self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def student(kind: str = "lsq", bits: int = 3, elements: bool = True) -> fx.GraphModule:
    """Quantized, with random masks of channels and, with ``elements``, of single weights."""
    torch.manual_seed(0)
    network = trace(Net())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    attach_views(network, elements)
    attach_quantizers(network, Quantization(bits, bits, kind=kind))  # type: ignore[arg-type]
    with torch.no_grad():
        for module in network.modules():
            for view in views_of(module):
                view.keep_O.copy_(torch.rand(view.keep_O.shape) < 0.7)
                keep_OX = getattr(view, "keep_OX", None)
                if keep_OX is not None:
                    keep_OX.copy_(torch.rand(keep_OX.shape) < 0.6)
    calibrate(network, [torch.randn(16, 3, 6, 6)])
    attach_teacher_norms(network)
    return network.train()


def by_hand(network: Any, x: Tensor, *, batch_statistics: bool) -> dict[str, Tensor]:
    """f(x; Q(M . W) + (1 - M) . W) from the tensors alone."""
    weights = {}
    for name, module in weighted(network):
        view: Any = weight_view(module)
        w_OX = latent_parameter(module, "weight").detach()
        rest = [1] * (w_OX.dim() - 1)
        keep_OX = view.keep_O.view(-1, *rest) & view.keep_I.view(1, -1, *rest[1:])
        keep_OX = keep_OX.expand_as(w_OX) & (
            torch.tensor(True) if view.keep_OX is None else view.keep_OX
        )
        q = view.quantizer
        scale_O = q.scale_O.detach()
        if q.kind == "minmax":
            widest_O = (w_OX * keep_OX).flatten(1).abs().amax(1) / q.q_max
            scale_O = torch.where(widest_O > 0, widest_O, 1.0)
        scale_OX = scale_O.view(-1, *rest)
        quantized_OX = (w_OX / scale_OX).round().clamp(-q.q_max, q.q_max) * scale_OX
        weights[name] = torch.where(keep_OX, quantized_OX, w_OX)

    def norm(x: Tensor, module: Any) -> Tensor:
        own = module.teacher
        statistics = (None, None) if batch_statistics else (own.running_mean, own.running_var)
        return F.batch_norm(x, *statistics, own.weight, own.bias, batch_statistics, 0.1, own.eps)

    conv1 = F.conv2d(x, weights["conv1"], padding=1)
    x = norm(conv1, network.bn1).relu()
    bias_O = latent_parameter(network.conv2, "bias")
    conv2 = F.conv2d(x, weights["conv2"], bias_O, padding=1)
    x = (x + norm(conv2, network.bn2)).relu()
    logits = F.linear(x.mean((2, 3)), weights["fc"], latent_parameter(network.fc, "bias"))
    return {"conv1": conv1, "conv2": conv2, "logits": logits}


@pytest.mark.parametrize("kind", ["lsq", "minmax"])
@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("follows", [False, True])
def test_features_are_those_of_the_student_with_its_masked_weights_back(
    kind: str, elements: bool, follows: bool
) -> None:
    network = student(kind, elements=elements).double()
    x = torch.randn(8, 3, 6, 6, dtype=torch.double)
    wanted = by_hand(network, x, batch_statistics=follows)
    teacher = InNetworkTeacher(network, FLOAT, follows=follows)
    found = teacher.observe(x, ["conv1", "conv2", "logits"])
    for spot, feature in wanted.items():
        torch.testing.assert_close(found[spot], feature.detach(), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert (found["logits"] - network.eval()(x)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lsq", "minmax"])
@pytest.mark.parametrize("follows", [False, True])
def test_no_tensor_of_the_student_moves(kind: str, follows: bool) -> None:
    network = student(kind)
    with torch.no_grad():  # a step after the last forward pass: min-max steps are of other weights
        latent_parameter(network.get_submodule("conv1"), "weight").mul_(1.5)
    before = copy.deepcopy(network.state_dict())
    modes = {name: module.training for name, module in network.named_modules()}
    teacher = InNetworkTeacher(network, FLOAT, follows=follows)
    found = teacher.observe(torch.randn(8, 3, 6, 6) + 2, ["bn1", "logits"])
    after = network.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    own = {
        f"bn{i}.teacher.{name}"
        for i in (1, 2)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert moved == (own if follows else set())
    assert not any(feature.requires_grad for feature in found.values())
    shared = {name: mode for name, mode in modes.items() if not name.endswith(".teacher")}
    assert {name: network.get_submodule(name).training for name in shared} == shared


def test_its_norms_follow_only_while_the_student_trains() -> None:
    network = student().eval()
    before = copy.deepcopy(network.state_dict())
    InNetworkTeacher(network, FLOAT, follows=True).observe(torch.randn(8, 3, 6, 6) + 2)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_no_gradient_reaches_it_and_the_students_survives() -> None:
    network = student()
    x = torch.randn(8, 3, 6, 6)
    z_s_BC = network(x)
    z_t_BC = InNetworkTeacher(network, FLOAT, follows=True).observe(x)["logits"]
    (z_s_BC - z_t_BC).square().sum().backward()
    conv = network.get_submodule("conv2")
    gradient = latent_parameter(conv, "weight").grad
    view = weight_view(conv)
    assert gradient is not None and view is not None
    assert gradient[view._mask_like(gradient).expand_as(gradient)].abs().sum() > 0
    assert not gradient[~view._mask_like(gradient).expand_as(gradient)].any()
    norms = [module.teacher for module in network.modules() if getattr(module, "teacher", None)]
    assert len(norms) == 2
    assert all(parameter.grad is None for norm in norms for parameter in norm.parameters())


def test_norms_that_are_moved_elsewhere_see_the_batch_and_keep_nothing_of_it() -> None:
    x, found = torch.randn(8, 3, 6, 6), []
    for elsewhere in (False, True):
        network = student()
        attach_teacher_norms(network)
        network.train()
        teacher = InNetworkTeacher(network, FLOAT, follows=True, moved_elsewhere=elsewhere)
        before = {name: value.clone() for name, value in network.named_buffers()}
        found.append(teacher.observe(x)["logits"])
        moved = {n for n, value in network.named_buffers() if not torch.equal(value, before[n])}
        assert bool(moved) != elsewhere
        assert all("teacher" in name for name in moved)
    torch.testing.assert_close(*found, rtol=0, atol=0)
