"""What holds for every registered loss: number formats, gradients, one sample, and its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolchain.distillation.losses.entry import LOSSES

B = 4
RELATIONAL = ("sp", "rkd", "pkt", "cc")
MODULES = ("cc", "vid", "ft", "crd")
LOGITS = ("kl", "dkd", "dist", "logit_mse", "ofa")
Run = Callable[..., Tensor]


def shapes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if name in LOGITS:
        return (B, 5), (B, 5)
    same = LOSSES[name].match in ("classes", "shape", "pair")
    return (B, 6, 4, 4), (B, 6 if same else 7, 4, 4)


def ready(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The loss with its options set; a module is made and prepared."""
    torch.manual_seed(0)
    entry = LOSSES[name]
    options = {"samples": 9} if "samples" in entry.options else {}
    loss = entry.bind(**options)
    if entry.build is None:
        return loss
    module = loss(*shapes(name)).to(dtype)
    if hasattr(module, "prepare"):
        module.prepare([torch.randn(shapes(name)[1])])
    return module


def features(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Any]:
    """Student's and teacher's, leaves that would take a gradient."""
    random = torch.Generator().manual_seed(seed)
    sides = []
    for shape in shapes(name):
        tensors = [
            torch.randn(shape, generator=random).to(dtype).requires_grad_() for _ in range(2)
        ]
        sides.append(tuple(tensors) if LOSSES[name].match == "pair" else tensors[0])
    return sides


def needed(name: str, samples: slice = slice(None)) -> dict[str, Tensor]:
    batch = {"labels_B": torch.arange(B) % 5, "index_B": torch.arange(B) + 3}
    return {k: v[samples] for k, v in batch.items() if k in LOSSES[name].needs}


def leaves(side: Any) -> list[Tensor]:
    return list(side) if isinstance(side, tuple) else [side]


@pytest.mark.parametrize("name", LOSSES)
def test_a_scalar_with_finite_gradients_and_none_to_the_teacher(name: str) -> None:
    student, teacher = features(name)
    value = ready(name)(student, teacher, **needed(name))
    value.backward()
    assert value.shape == ()
    assert all(torch.isfinite(x.grad).all() and x.grad.any() for x in leaves(student))
    assert all(x.grad is None for x in leaves(teacher))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    """And its second derivative too; in float64, where ``eval`` holds memories and statistics still."""
    loss = ready(name, torch.float64)
    if isinstance(loss, nn.Module):
        loss(*features(name, torch.float64, seed=1), **needed(name))
        loss.eval()
    student, teacher = features(name, torch.float64)

    def value(*tensors: Tensor) -> Tensor:
        return loss(tensors if isinstance(student, tuple) else tensors[0], teacher, **needed(name))

    assert value(*leaves(student)).dtype is torch.float64
    assert torch.autograd.gradcheck(value, leaves(student), fast_mode=True)
    assert torch.autograd.gradgradcheck(value, leaves(student), fast_mode=True)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_features_are_computed_in_float32(name: str) -> None:
    student, teacher = features(name, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ready(name)(student, teacher, **needed(name))
    found.backward()
    float_student, float_teacher = (
        tuple(x.float() for x in side) if isinstance(side, tuple) else side.float()
        for side in (student, teacher)
    )
    assert found.dtype is torch.float32
    assert torch.equal(found, ready(name)(float_student, float_teacher, **needed(name)))
    assert all(x.grad.dtype is torch.bfloat16 for x in leaves(student))


@pytest.mark.parametrize("name", LOSSES)
def test_one_sample_is_defined(name: str) -> None:
    student, teacher = (
        tuple(x[:1] for x in side) if isinstance(side, tuple) else side[:1]
        for side in features(name)
    )
    for tensor in leaves(student):
        tensor.retain_grad()
    value = ready(name)(student, teacher, **needed(name, slice(1)))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(x.grad).all() for x in leaves(student))
    if name in RELATIONAL:
        assert value.item() == 0
        assert not any(x.grad.any() for x in leaves(student))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_features_of_zeros_are_finite(name: str, dead: str) -> None:
    sides = [
        torch.zeros(shape) if dead in (side, "both") else torch.randn(shape)
        for side, shape in zip(("student", "teacher"), shapes(name), strict=True)
    ]
    sides[0].requires_grad_()
    student, teacher = ((x, x) if LOSSES[name].match == "pair" else x for x in sides)
    value = ready(name)(student, teacher, **needed(name))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(sides[0].grad).all()
    assert sides[0].grad.abs().max() < 1e4


@pytest.mark.parametrize("name", ["kl", "dkd", "dist", "logit_mse", "fitnet", "at", "nst", "fsp"])
def test_equal_features_cost_nothing(name: str) -> None:
    student, _ = features(name)
    value = ready(name)(student, student, **needed(name))
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("cc", "crd")])
def test_more_of_the_same_batch_changes_no_mean(name: str) -> None:
    """A loss is a mean over samples, or over their relations: it does not grow with the batch."""
    loss = ready(name)
    if isinstance(loss, nn.Module):
        loss.eval()
    once = features(name)
    twice = [
        tuple(torch.cat([x, x]) for x in side) if isinstance(side, tuple) else torch.cat([side] * 2)
        for side in once
    ]
    more = {k: torch.cat([v, v]) for k, v in needed(name).items()}
    found, expected = loss(*twice, **more), loss(*once, **needed(name))
    if name in RELATIONAL:
        assert found.item() < 2 * expected.item()
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", MODULES)
def test_a_state_makes_the_next_loss_the_same_bits(name: str) -> None:
    loss = ready(name)
    optimizer = torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.1)
    for seed in range(3):
        loss(*features(name, seed=seed), **needed(name)).backward()
        optimizer.step()
    torch.manual_seed(9)
    entry = LOSSES[name]
    options = {"samples": 9} if "samples" in entry.options else {}
    other = entry.bind(**options)(*shapes(name))
    assert not torch.equal(*(next(x.parameters()) for x in (loss, other)))
    other.load_state_dict(loss.state_dict())
    for seed in (5, 6):
        batch = features(name, seed=seed)
        assert torch.equal(loss(*batch, **needed(name)), other(*batch, **needed(name)))


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_learns_is_in_its_parameters(name: str) -> None:
    loss = ready(name)
    assert isinstance(loss, nn.Module)
    assert any(p.requires_grad for p in loss.parameters())
    loss(*features(name), **needed(name)).backward()
    assert all((p.grad is not None) == p.requires_grad for p in loss.parameters())


TOKENS = [
    name for name in LOSSES if LOSSES[name].match not in ("exit", "pair") and name not in LOGITS
]


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_accepted(name: str) -> None:
    torch.manual_seed(0)
    entry = LOSSES[name]
    shape = (B, 16, 6)
    options = {"samples": 9} if "samples" in entry.options else {}
    loss = entry.bind(**options)
    if entry.build is not None:
        loss = loss(shape, shape)
    if hasattr(loss, "prepare"):
        loss.prepare([torch.randn(shape)])
    student = torch.randn(shape, requires_grad=True)
    loss(student, torch.randn(shape), **needed(name)).backward()
    assert student.grad.any()
    assert torch.isfinite(student.grad).all()
