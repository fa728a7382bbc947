"""Number formats of losses, and norms whose gradient at zero is finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolchain.distillation.losses.arithmetic import full_precision, maps, nothing, root, unit


@full_precision
def product(student: Tensor, teacher: Tensor, scale: float = 1.0) -> Tensor:
    return scale * (student @ teacher.T).sum()


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.bfloat16, torch.float64),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_half_types_are_raised_and_double_is_kept(
    student: torch.dtype, teacher: torch.dtype, expected: torch.dtype
) -> None:
    loss = product(torch.ones(2, 3, dtype=student), torch.ones(2, 3, dtype=teacher))
    assert loss.dtype is expected


def test_autocast_does_not_reach_inside() -> None:
    x = torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        found = product(x, x, 0.5)
    assert torch.equal(found, product(x, x, 0.5))


def test_the_teacher_is_detached_alone_or_in_a_tuple() -> None:
    s, t = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    product(s, t).backward()

    @full_precision
    def second(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
        return (student[1] * teacher[1]).sum()

    second((s, s), (t, t)).backward()
    assert s.grad is not None
    assert t.grad is None


def test_a_zero_row_has_no_direction_and_a_finite_gradient() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-30, 0.0]], requires_grad=True)
    y = unit(x)
    assert y.tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)], [pytest.approx(0), 0]]
    (y * torch.tensor([1.0, 2.0])).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() <= 2


def test_the_root_of_zero_has_gradient_zero() -> None:
    x = torch.tensor([4.0, 0.0, -1e-9], requires_grad=True)
    root(x).sum().backward()
    assert root(x).tolist() == [2, 0, 0]
    assert x.grad.tolist() == [0.25, 0, 0]


def test_maps_put_channels_first() -> None:
    assert maps(torch.zeros(2, 3, 4, 5)).shape == (2, 3, 20)
    assert maps(torch.zeros(2, 9, 3)).shape == (2, 3, 9)
    assert maps(torch.zeros(2, 3)).shape == (2, 3, 1)


def test_nothing_has_a_graph() -> None:
    x = torch.full((1, 3), float("inf"), requires_grad=True)
    nothing(x).backward()
    assert float(nothing(x).detach()) == 0
    assert x.grad.tolist() == [[0, 0, 0]]
