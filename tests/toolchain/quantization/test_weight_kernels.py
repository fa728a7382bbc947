"""The compiled kernel of a weight against the view's own dozen steps, which NumPy checks elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from toolchain.quantization import kernels, weight_kernels
from toolchain.quantization.views import View
from toolchain.quantization.weights import QuantizerKind, WeightQuantizer, WeightView


@pytest.fixture
def compiled() -> Iterator[None]:
    if not kernels.use_compiled(True):
        pytest.skip("no C++ compiler and no CUDA device")
    yield
    kernels.use_compiled(False)


def seen(
    shape: tuple[int, ...], kind: QuantizerKind, view: View, fused: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The weight as the view shows it to a bf16 pass, its gradient, the steps and theirs."""
    kernels.use_compiled(fused)
    torch.manual_seed(0)
    weight = torch.randn(shape).to(memory_format=torch.channels_last)
    grad = torch.randn(shape).to(torch.bfloat16).to(memory_format=torch.channels_last)
    one = WeightView(weight, 0, True, False)
    one.quantizer = WeightQuantizer(shape[0], 8, kind)
    one.quantizer.calibrate(weight)
    with torch.no_grad():
        one.quantizer.scale_O.mul_(0.7)  # some weights lie beyond the grid
        one.quantizer.scale_O[0].neg_()  # where a learned step was carried past zero
    one.keep_O.copy_(torch.rand(shape[0]) > 0.3)
    one.keep_I.copy_(torch.rand(shape[1]) > 0.3)
    one.view = view
    latent = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        shown = one(latent)
        shown = shown.to(torch.bfloat16)  # what autocast does to it before the convolution
    shown.backward(grad)
    assert latent.grad is not None
    scale_O = one.quantizer.scale_O
    return shown.detach(), latent.grad, scale_O.detach(), scale_O.grad


@pytest.mark.parametrize(
    ("kind", "view", "shape"),
    [
        ("lsq", View.STUDENT, (8, 6, 3, 3)),
        ("lsq", View.STUDENT, (8, 6, 1, 1)),
        ("lsq", View.TEACHER, (8, 6, 3, 3)),
        ("minmax", View.STUDENT, (8, 6, 3, 3)),
    ],
)
def test_it_gives_what_the_steps_give(
    compiled: None, kind: QuantizerKind, view: View, shape: tuple[int, ...]
) -> None:
    want = seen(shape, kind, view, fused=False)
    got = seen(shape, kind, view, fused=True)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])
    assert (got[3] is None) == (want[3] is None)
    if got[3] is not None and want[3] is not None:
        torch.testing.assert_close(got[3], want[3], rtol=1e-5, atol=1e-6)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("weight", "taken"),
    [
        (torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last), True),
        (torch.randn(4, 3, 3, 3), False),
        (torch.randn(4, 3), False),
        (torch.randn(4, 3, 3, 3).double().to(memory_format=torch.channels_last), False),
    ],
)
def test_only_what_fits_is_taken(weight: Tensor, taken: bool) -> None:
    assert weight_kernels.fits(weight) is taken


def test_outside_of_bf16_passes_nothing_is_fused(compiled: None) -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    view = WeightView(weight, 0, True, False)
    view.quantizer = WeightQuantizer(4)
    view.quantizer.calibrate(weight)
    assert view(weight).dtype is torch.float32
