"""Weight views against NumPy in double precision.  Axes: O output channels, I input channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from toolchain.quantization.attached import attach_views, weight_view
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import QuantizerKind, WeightQuantizer, WeightView

KINDS: tuple[QuantizerKind, ...] = ("lsq", "minmax")
BITS = range(2, 9)
SHAPES = st.sampled_from([(1, 1), (3, 5), (4, 3, 3), (5, 2, 3, 3), (6, 1, 3, 3)])


def weight_of(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view_of(weight: Tensor, bits: int, kind: QuantizerKind, out_dim: int = 0) -> WeightView:
    view = WeightView(weight, out_dim, has_inputs=True, elements=True)
    view.quantizer = WeightQuantizer(weight.shape[out_dim], bits, kind)
    view.to(weight.dtype)
    view.quantizer.calibrate(weight if out_dim == 0 else weight.transpose(0, 1))
    return view


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_masked_weight_is_exactly_zero(
    bits: int, kind: QuantizerKind, shape: tuple[int, ...], seed: int
) -> None:
    weight = weight_of(shape, seed)
    view = view_of(weight, bits, kind)
    choose = torch.Generator().manual_seed(seed)
    assert view.keep_OX is not None
    for keep in (view.keep_O, view.keep_I, view.keep_OX):
        keep.copy_(torch.rand(keep.shape, generator=choose) > 0.3)
    student = view(weight)
    assert (student[~view._mask_like(weight).expand_as(weight)] == 0).all()
    assert torch.isfinite(student).all()
    torch.testing.assert_close(view(weight), student, rtol=0, atol=0)  # no state creeps in


@given(shape=SHAPES, seed=st.integers(0, 999))
def test_mask_is_idempotent(shape: tuple[int, ...], seed: int) -> None:
    weight = weight_of(shape, seed)
    view = WeightView(weight, 0, has_inputs=True, elements=False)
    view.keep_O.copy_(torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) > 0.5)
    assert torch.equal(view(view(weight)), view(weight))
    view.keep_O.fill_(True)
    assert torch.equal(view(weight), weight)
    view.keep_O.fill_(False)
    assert not view(weight).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 8])
def test_masked_weight_stays_zero_when_an_optimizer_moves_it(
    bits: int, kind: QuantizerKind
) -> None:
    layer = attach_views(nn.Linear(6, 4))
    view = weight_view(layer)
    assert view is not None
    view.quantizer = WeightQuantizer(4, bits, kind)
    view.quantizer.calibrate(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    latent = layer.parametrizations["weight"].original
    for step in range(4):
        if step == 2:  # momentum is there by now
            view.keep_O[1], view.keep_I[3] = False, False
            before = latent.detach().clone()
        optimizer.zero_grad()
        layer(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
    assert not layer.weight[1].any()
    assert not layer.weight[:, 3].any()
    assert not torch.equal(latent[1], before[1])


def lsq(
    w_OX: np.ndarray, s_O: np.ndarray, bits: int, grad_OX: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, gradient of the weight and gradient of the step of Esser et al., one scalar at a time."""
    top = 2 ** (bits - 1) - 1
    y, dw, ds = np.zeros_like(w_OX), np.zeros_like(w_OX), np.zeros_like(s_O)
    for place in np.ndindex(w_OX.shape):
        s, v = s_O[place[0]], w_OX[place] / s_O[place[0]]
        if v > top or v < -top:
            y[place] = s * top * np.sign(v)
            ds[place[0]] += grad_OX[place] * top * np.sign(v)
        else:
            y[place] = s * np.rint(v)
            dw[place] = grad_OX[place]
            ds[place[0]] += grad_OX[place] * (np.rint(v) - v)
    return y, dw, ds / np.sqrt(w_OX[0].size * top)


@pytest.mark.parametrize("bits", BITS)
@given(shape=SHAPES, seed=st.integers(0, 999), width=st.floats(0.2, 3.0))
def test_learned_step_is_the_published_one(
    bits: int, shape: tuple[int, ...], seed: int, width: float
) -> None:
    weight = weight_of(shape, seed).requires_grad_()
    quantizer = WeightQuantizer(shape[0], bits, "lsq").double()
    steps_O = width * (0.5 + weight_of((shape[0],), seed + 1).abs()) / quantizer.q_max
    quantizer.scale_O.data.copy_(steps_O)
    grad = weight_of(shape, seed + 2)
    y = quantizer(weight)
    y.backward(grad)
    want = lsq(weight.detach().numpy(), steps_O.numpy(), bits, grad.numpy())
    got: list[Any] = [y.detach(), weight.grad, quantizer.scale_O.grad]
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minmax_is_straight_through_for_every_weight(bits: int, dtype: torch.dtype) -> None:
    weight = torch.randn(200, 9, dtype=dtype).requires_grad_()
    quantizer = WeightQuantizer(200, bits, "minmax").to(dtype)
    y = quantizer(weight)
    y.backward(torch.full_like(weight, 3.0))
    assert weight.grad is not None
    assert (weight.grad == 3.0).all()
    w = weight.detach().double().numpy()
    top = 2 ** (bits - 1) - 1
    s = np.abs(w).max(1, keepdims=True) / top
    near = np.abs(y.detach().double().numpy() - w)
    assert (near <= s / 2 * (1 + 1e-4)).all()
    np.testing.assert_allclose(quantizer.scale_O.double().numpy(), s[:, 0], rtol=1e-6)
    assert len(np.unique(np.rint(y.detach().double().numpy() / s))) <= 2 * top + 1


def test_largest_weight_learns_right_after_calibration() -> None:
    """w / (w / 127) may be a hair above 127, which is no clipping."""
    weight = torch.randn(300, 4).requires_grad_()
    quantizer = WeightQuantizer(300, 8, "lsq")
    quantizer.calibrate(weight)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_step_is_no_worse_than_the_range(bits: int, kind: QuantizerKind) -> None:
    weight = weight_of((16, 3, 3, 3), 0) ** 3  # long tails
    quantizer = WeightQuantizer(16, bits, kind).double()
    quantizer.calibrate(weight)

    def squared_O(scale_O: Tensor) -> Tensor:
        s = scale_O.view(-1, 1, 1, 1)
        q = (weight / s).round().clamp(-quantizer.q_max, quantizer.q_max)
        return (q * s - weight).square().sum((1, 2, 3))

    full_O = weight.flatten(1).abs().amax(1) / quantizer.q_max
    assert (squared_O(quantizer.scale_O) <= squared_O(full_O) * (1 + 1e-12)).all()
    if kind == "lsq" and bits <= 4:
        assert squared_O(quantizer.scale_O).sum() < squared_O(full_O).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_channel_of_zeros_has_a_step_and_stays_zero(kind: QuantizerKind) -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    quantizer = WeightQuantizer(3, 4, kind)
    quantizer.calibrate(weight)
    assert float(quantizer.scale_O[1].detach()) == 1
    assert not quantizer(weight)[1].any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_the_fake_quantized_weight(bits: int, kind: QuantizerKind) -> None:
    weight = weight_of((5, 3, 3, 3), 1)
    view = view_of(weight, bits, kind)
    assert view.quantizer is not None
    q_OX, scale_O = view.quantizer.integers(weight)
    assert q_OX.dtype == torch.int8
    assert int(q_OX.abs().max()) <= 2 ** (bits - 1) - 1
    assert torch.equal(q_OX * scale_O.view(-1, 1, 1, 1), view(weight))


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_convolution_has_one_step_for_each_output_channel(kind: QuantizerKind) -> None:
    weight = weight_of((4, 3, 2, 2), 0) * torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    view = view_of(weight, 8, kind, out_dim=1)
    assert view.quantizer is not None
    got = view(weight)
    for channel in range(3):
        step = float(weight[:, channel].abs().max()) / 127
        assert view.quantizer.scale_O[channel].item() == pytest.approx(step, rel=0.05)
        assert (got - weight)[:, channel].abs().max().item() <= step
    assert got.is_contiguous()
    view.keep_O[1] = False
    view.keep_I[2] = False
    got = view(weight)
    assert not got[:, 1].any()
    assert not got[2].any()
    assert got[0, 0].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_latent_and_teacher_views(bits: int, kind: QuantizerKind) -> None:
    weight = weight_of((4, 3, 3, 3), 0)
    view = view_of(weight, bits, kind)
    view.keep_O[2], view.keep_I[0] = False, False
    mask = view._mask_like(weight).expand_as(weight)
    student = view(weight)
    with use_view(view, View.LATENT):
        assert torch.equal(view(weight), weight)
    with use_view(view, View.TEACHER):
        assert torch.equal(view(weight), torch.where(mask, student, weight))
        view.quantizer, quantizer = None, view.quantizer
        assert torch.equal(view(weight), weight)
        view.quantizer, view.quantize_teacher = quantizer, True
        assert quantizer is not None
        assert torch.equal(view(weight), quantizer(weight))
        if kind == "lsq":  # the step is the student's
            assert torch.equal(view(weight)[mask], student[mask])
    assert torch.equal(view(weight), student)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("quantize_teacher", [True, False])
@pytest.mark.parametrize("route", [True, False])
def test_teacher_moves_what_it_may(route: bool, quantize_teacher: bool, quantized: bool) -> None:
    weight = weight_of((4, 3, 3, 3), 0).requires_grad_()
    view = view_of(weight.detach(), 8, "lsq")
    if not quantized:
        view.quantizer = None
    view.keep_O[2], view.keep_I[0] = False, False
    view.route_teacher, view.quantize_teacher = route, quantize_teacher
    mask = view._mask_like(weight).expand_as(weight)
    with use_view(view, View.TEACHER):
        view(weight).sum().backward()
    assert weight.grad is not None
    assert (weight.grad[~mask] == 1).all()
    assert (weight.grad[mask] == (0 if route else 1)).all()
    weight.grad = None
    view(weight).sum().backward()
    assert (weight.grad == mask).all()


def test_depthwise_weight_has_no_input_mask() -> None:
    weight = weight_of((4, 1, 3, 3), 0)
    view = WeightView(weight, 0, has_inputs=False, elements=False)
    assert view.keep_I.shape == (1,)
    view.keep_O[3] = False
    assert torch.equal(view(weight)[:3], weight[:3])
    assert not view(weight)[3].any()
