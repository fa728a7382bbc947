"""Fake quantization of activations against NumPy in double precision, eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolchain.quantization import kernels
from toolchain.quantization.kernels import FakeQuantize, Grid

GRIDS = [(0.0, 255.0), (-128.0, 127.0), (0.0, 15.0), (-8.0, 7.0), (0.0, 3.0), (-2.0, 1.0)]
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@pytest.fixture
def compiled() -> Iterator[None]:
    if not kernels.use_compiled(True):
        pytest.skip("no C++ compiler and no CUDA device")
    yield
    kernels.use_compiled(False)


def reference(
    x: np.ndarray, s: float, low: float, high: float, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Value and both gradients, one scalar at a time; unsigned is a ReLU and then the quantizer."""
    y, dx, ds = np.zeros_like(x), np.zeros_like(x), 0.0
    for place in np.ndindex(x.shape):
        v = x[place] / s
        y[place] = s * min(max(np.rint(v), low), high)
        if v > high:
            ds += grad[place] * high
        elif v < low:
            ds += grad[place] * low
        elif low < 0 or v > 0:
            dx[place] = grad[place]
            ds += grad[place] * (np.rint(v) - v)
    features = x[0].size if x.ndim > 1 else x.size
    return y, dx, ds / np.sqrt(features * high)


def run(
    x: Tensor, scale: Tensor, low: float, high: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    y = FakeQuantize.apply(x, scale, Grid(low, high))
    y.backward(grad)
    assert x.grad is not None
    assert scale.grad is not None
    return y.detach(), x.grad, scale.grad


@pytest.mark.parametrize(("low", "high"), GRIDS)
@given(shape=SHAPES, seed=st.integers(0, 999), width=st.floats(0.1, 3.0))
def test_values_and_gradients(
    low: float, high: float, shape: tuple[int, ...], seed: int, width: float
) -> None:
    random = np.random.default_rng(seed)
    x, grad = random.normal(size=shape), random.normal(size=shape)
    s = width / high
    want = reference(x, s, low, high, grad)
    got = run(
        torch.from_numpy(x),
        torch.tensor(s, dtype=torch.float64),
        low,
        high,
        torch.from_numpy(grad),
    )
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), GRIDS)
def test_ends_of_the_grid(low: float, high: float) -> None:
    """At the ends nothing is clipped yet; an unsigned grid has a ReLU's gradient at 0."""
    x = torch.tensor([low, low - 0.25, high, high + 0.25, 0.0], dtype=torch.float64) / 2
    y, dx, _ = run(x, torch.tensor(0.5, dtype=torch.float64), low, high, torch.ones(5))
    assert y.tolist() == [low / 2, low / 2, high / 2, high / 2, 0]
    assert dx.tolist() == [float(low < 0), 0, 1, 0, float(low < 0)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "mixed"])
def test_layout_of_memory_changes_nothing(layout: str) -> None:
    x, grad = torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5)
    scale = torch.tensor(0.02)
    want = run(x, scale, 0.0, 255.0, grad)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last)
    elif layout == "mixed":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.cat([x, x], 2)[:, :, :6]
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    got = run(x, scale, 0.0, 255.0, grad)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2])
    if layout == "channels_last":
        assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_half_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, grad = torch.randn(4, 3, 5, 5).to(dtype), torch.randn(4, 3, 5, 5).to(dtype)
    scale = torch.tensor(0.013)
    y, dx, ds = run(x, scale, -128.0, 127.0, grad)
    assert (y.dtype, dx.dtype, ds.dtype) == (dtype, dtype, torch.float32)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    y_wide, dx_wide, ds_wide = run(x.to(wide), scale, -128.0, 127.0, grad.to(wide))
    assert torch.equal(y, y_wide.to(dtype))
    assert torch.equal(dx, dx_wide.to(dtype))
    torch.testing.assert_close(ds, ds_wide)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-128.0, 127.0)])
def test_compiled_equals_eager(low: float, high: float, compiled: None) -> None:
    for shape in ((4, 8, 6, 5), (2, 3, 7, 7), (6, 10)):
        x, grad = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
        if len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        scale = torch.tensor(0.017)
        kernels.use_compiled(True)
        got = run(x, scale, low, high, grad)
        kernels.use_compiled(False)
        want = run(x, scale, low, high, grad)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
        torch.testing.assert_close(got[2], want[2], rtol=1e-4, atol=1e-5)
        assert got[0].stride() == want[0].stride()


def test_without_a_compiler_kernels_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels.use_compiled(True) is False
    assert kernels.use_compiled(False) is False
