"""Fake quantization of activations in one pass forward and one pass backward.

    forward    y = s . clip(round(x / s), n, p)
    backward   dx = dy                      where n <= x / s <= p, else 0
               ds = sum dy . (round(x/s) - x/s | n | p)  . 1 / sqrt(features . p)

Esser et al. 2020, https://arxiv.org/abs/1902.08153, equations 1 to 3. With n = 0 this is also the ReLU
before the quantizer, which is then not computed at all. Eager torch needs four passes over memory for
the forward and more for the backward; where a C++ compiler is at hand and the work is long enough to pay
for it, torch.compile makes one loop of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_compiled = False


class Grid(NamedTuple):
    """Integers ``low`` <= 0 < ``high`` between which a value is clipped."""

    low: float
    high: float


def _wide(x: Tensor) -> Tensor:
    """Half-precision values are computed with in float32, all others in their own type."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def quantize(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The value of the forward pass."""
    return ((_wide(x) / scale).round().clamp(*grid) * scale).to(x.dtype)


def gradients(grad: Tensor, x: Tensor, scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The gradient of ``x``, and that of the step before its division by `step_gradient`."""
    low, high = grid
    v = _wide(x) / scale
    inside = (v > low) & (v <= high) if low == 0 else (v >= low) & (v <= high)
    edge = torch.where(v > high, high, low)
    step = torch.where(inside, v.round() - v, edge) * _wide(grad)
    return torch.where(inside, grad, 0.0).to(grad.dtype), step.sum()


def widest(x: Tensor, grid: Grid) -> Tensor:
    """The largest value that a grid has to hold; what a ReLU drops is no part of an unsigned one."""
    return x.amax() if grid.low == 0 else x.abs().amax()


def step_gradient(ds: Tensor, scale: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """The step's gradient as LSQ scales it, by the number of features of one sample of ``x``."""
    features = max(x[0].numel(), 1) if x.dim() > 1 else max(x.numel(), 1)
    return ds.reshape(scale.shape) / (features * grid.high) ** 0.5


def packed(x: Tensor) -> bool:
    """Whether ``x`` fills its memory in one of the two layouts that `flat` knows."""
    return x.is_contiguous() or _channels_last(x)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def flat(x: Tensor) -> Tensor:
    """The elements of ``x`` in the order of memory, [N], without a copy for the usual layouts.

    One dimension means one compiled kernel, whatever the shape.
    """
    return x.permute(0, 2, 3, 1).reshape(-1) if _channels_last(x) else x.reshape(-1)


def like(flat_N: Tensor, x: Tensor) -> Tensor:
    """The inverse of `flat`, in the shape and layout of ``x``."""
    if _channels_last(x):
        b, c, h, w = x.shape
        return flat_N.view(b, h, w, c).permute(0, 3, 1, 2)
    return flat_N.view(x.shape)


def same_layout(other: Tensor, x: Tensor) -> Tensor:
    """``other`` in the layout of ``x``."""
    if _channels_last(x):
        return other.contiguous(memory_format=torch.channels_last)
    return other.contiguous()


@cache
def _kernels(grid: Grid, compiled: bool) -> tuple[Forward, Backward]:
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return quantize(x, scale, grid)

    def backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return gradients(grad, x, scale, grid)

    if not compiled:
        return forward, backward
    return torch.compile(forward, dynamic=True), torch.compile(backward, dynamic=True)


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call, or None."""
    return shutil.which("g++") or shutil.which("clang++")


def use_compiled(on: bool) -> bool:
    """Choose compiled or eager kernels for bf16 training passes; returns what is used from now on.

    Compiled kernels cost some seconds once and are kept in torch's own cache.
    """
    global _compiled
    _compiled = on and (torch.cuda.is_available() or compiler() is not None)
    return _compiled


def compiling(tensor: Tensor) -> bool:
    """Whether a pass that autocast runs in bf16 over ``tensor`` takes the compiled kernels."""
    kind = tensor.device.type
    return (
        _compiled
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) is torch.bfloat16
    )


class FakeQuantize(torch.autograd.Function):
    """``apply(x, scale, grid)`` with scale a positive scalar tensor."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, grid: Grid
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.kernels = _kernels(grid, _compiled and x.dtype is torch.bfloat16)  # type: ignore[attr-defined]
        ctx.grid = grid  # type: ignore[attr-defined]
        return like(ctx.kernels[0](flat(x), scale), x)  # type: ignore[attr-defined]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        dx, ds = ctx.kernels[1](flat(same_layout(grad, x)), flat(x), scale)  # type: ignore[attr-defined]
        return like(dx, x), step_gradient(ds, scale, x, ctx.grid), None  # type: ignore[attr-defined]
