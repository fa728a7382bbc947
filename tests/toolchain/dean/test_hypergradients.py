"""The cheap hypergradients against autograd through the step, in float64; and the step as it is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from toolchain.dean.admm import soft_threshold
from toolchain.dean.gradients import term_gradients, trained
from toolchain.dean.hypergradients import (
    keeping_size,
    size_hypergradient,
    sparsity_hypergradient,
    strength_hypergradients,
)
from toolchain.dean.look_ahead import look_ahead
from toolchain.distillation.lessons import School

LR = 0.05


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
    return nn.Sequential(*layers).double()


def losses(net: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """The task, and three terms of very different kinds."""
    z = functional_call(net, weights, (x,))
    target = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).view_as(z)
    first = weights["0.weight"].square().mean() * z.abs().mean()
    return [F.cross_entropy(z, y), (z - target).square().mean(), first, z.logsumexp(1).mean()]


def test_strengths_against_autograd_through_the_step() -> None:
    net = network()
    x, y = torch.randn(10, 6).double(), torch.randint(3, (10,))
    x_v, y_v = torch.randn(8, 6).double(), torch.randint(3, (8,))
    weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    strengths = torch.tensor([0.3, 1.1, 0.0], dtype=torch.double, requires_grad=True)
    found = [
        torch.autograd.grad(value, list(weights.values()), retain_graph=True)
        for value in losses(net, weights, x, y)
    ]

    def stepped(alpha: Tensor) -> dict[str, Tensor]:
        moved = {}
        for number, (name, w) in enumerate(weights.items()):
            down = 0.8 * found[0][number]
            down = down + sum(a * g[number] for a, g in zip(alpha, found[1:], strict=True))
            moved[name] = w.detach() - LR * down
        return moved

    held_out = losses(net, stepped(strengths), x_v, y_v)[0]
    (expected,) = torch.autograd.grad(held_out, strengths)
    ahead = {name: w.detach().requires_grad_() for name, w in stepped(strengths).items()}
    at_w = torch.autograd.grad(losses(net, ahead, x_v, y_v)[0], list(ahead.values()))
    cheap = strength_hypergradients(
        torch.cat([g.flatten() for g in at_w]),
        torch.stack([torch.cat([g.flatten() for g in row]) for row in found[1:]]),
        LR,
    )
    torch.testing.assert_close(cheap, expected, rtol=1e-6, atol=1e-12)
    per_number = torch.full((sum(g.numel() for g in at_w),), LR, dtype=torch.double)
    again = strength_hypergradients(
        torch.cat([g.flatten() for g in at_w]),
        torch.stack([torch.cat([g.flatten() for g in row]) for row in found[1:]]),
        per_number,
    )
    torch.testing.assert_close(again, cheap)


@pytest.mark.parametrize("rate", [LR, 40 * LR])
def test_the_look_ahead_gives_the_derivative_through_a_whole_student(
    layered: Callable[..., School], double_student: nn.Module, rate: float
) -> None:
    """Batch norm, adapters' spots and all: the numbers that the dean learns from, in float64.

    Also where the step is shortened, to a length that no strength can change.
    """
    school = layered(double_student)
    parameters = trained(school)
    assert school.probe is not None and school.held_out is not None
    gradients = term_gradients(school, school.probe(0, 40), parameters)
    batch = school.held_out(0, 30)
    ahead = look_ahead(school, gradients, 0.7, [0.4, 0.3, 0.2], batch, rate)
    assert (ahead.learning_rate < rate) is (rate > LR)

    names = [name for name, _ in school.network.named_parameters()]
    alpha = torch.tensor([0.4, 0.3, 0.2], dtype=torch.double, requires_grad=True)
    down = 0.7 * gradients.task_P + (alpha[:, None] * gradients.terms_TP).sum(0)
    sizes = [p.numel() for p in parameters]
    step = rate * down
    if rate > LR:
        longest = 0.05 * torch.cat([p.detach().flatten() for p in parameters]).norm()
        step = longest * down / down.norm()
    moved = {
        name: p.detach() - piece.view_as(p)
        for name, p, piece in zip(names, parameters, step.split(sizes), strict=True)
    }
    z = functional_call(school.network, moved, (batch.images_BCHW,))
    total = F.cross_entropy(z, batch.labels_B)
    (expected,) = torch.autograd.grad(total, alpha)
    assert ahead.loss == pytest.approx(float(total.detach()), rel=1e-9)
    assert ahead.derivatives == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("price", [0.05, 0.4, 1.2])
def test_sparsity_strength_against_autograd_through_the_threshold(price: float) -> None:
    torch.manual_seed(1)
    size, cost_C = 12, torch.rand(9).double()
    v_CX = torch.randn(9, size).double() * torch.linspace(0.05, 1, 9).double()[:, None]
    inputs = torch.randn(20, size).double()
    beta = torch.tensor(0.9, dtype=torch.double, requires_grad=True)

    def factors(strength: Tensor) -> Tensor:
        return soft_threshold(v_CX.norm(dim=1), price * strength * size**0.5 / 4)

    def loss(z_CX: Tensor) -> Tensor:
        return (inputs @ z_CX.T).tanh().cos().mean()

    (expected,) = torch.autograd.grad(loss(factors(beta)[:, None] * v_CX), beta)
    (expected_size,) = torch.autograd.grad((cost_C * factors(beta)).sum(), beta)
    factor_C = factors(beta.detach())
    z_CX = (factor_C[:, None] * v_CX).requires_grad_()
    (at_z,) = torch.autograd.grad(loss(z_CX), z_CX)
    norms_C, active_C = v_CX.norm(dim=1), factor_C > 0
    given = (norms_C, active_C, size, price / 4)
    cheap = sparsity_hypergradient((at_z * v_CX).sum(1), *given)
    torch.testing.assert_close(cheap, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(
        size_hypergradient(cost_C, *given), expected_size, rtol=1e-6, atol=1e-12
    )


def test_a_channel_of_zeros_has_no_direction_and_gives_no_nan() -> None:
    nothing = torch.zeros(3)
    assert sparsity_hypergradient(nothing, nothing, torch.ones(3, dtype=torch.bool), 4, 1.0) == 0


def test_at_an_unchanged_size_only_the_difference_between_layers_is_left() -> None:
    size_L = torch.tensor([-1.0, -2.0, -0.5])
    assert keeping_size(3 * size_L, size_L).abs().max() < 1e-6
    left_L = keeping_size(torch.tensor([0.4, -0.1, 0.9]), size_L)
    assert abs(float((left_L * size_L).sum())) < 1e-6
    assert keeping_size(left_L, torch.zeros(3)) is left_L
