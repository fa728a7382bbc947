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

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_compiled = False


def _wide(x: Tensor) -> Tensor:
    """Half-precision values are computed with in float32, all others in their own type."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _forward(low: float, high: float) -> Forward:
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return ((_wide(x) / scale).round().clamp(low, high) * scale).to(x.dtype)

    return forward


def _backward(low: float, high: float) -> Backward:
    def backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        v = _wide(x) / scale
        inside = (v > low) & (v <= high) if low == 0 else (v >= low) & (v <= high)
        edge = torch.where(v > high, high, low)
        step = torch.where(inside, v.round() - v, edge) * _wide(grad)
        return torch.where(inside, grad, 0.0).to(grad.dtype), step.sum()

    return backward


def _flat(x: Tensor) -> Tensor:
    """The elements of ``x`` in the order of memory, [N], without a copy for the usual layouts.

    One dimension means one compiled kernel, whatever the shape.
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1)
    return x.reshape(-1)


def _like(flat_N: Tensor, x: Tensor) -> Tensor:
    """The inverse of `_flat`, in the shape and layout of ``x``."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        b, c, h, w = x.shape
        return flat_N.view(b, h, w, c).permute(0, 3, 1, 2)
    return flat_N.view(x.shape)


def _same_layout(grad: Tensor, x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return grad.contiguous(memory_format=torch.channels_last)
    return grad.contiguous()


@cache
def _kernels(low: float, high: float, compiled: bool) -> tuple[Forward, Backward]:
    forward, backward = _forward(low, high), _backward(low, high)
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


class FakeQuantize(torch.autograd.Function):
    """``apply(x, scale, low, high)`` with scale a positive scalar tensor, low <= 0 < high integers."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, low: float, high: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.kernels = _kernels(low, high, _compiled and x.dtype is torch.bfloat16)  # type: ignore[attr-defined]
        ctx.high = high  # type: ignore[attr-defined]
        return _like(ctx.kernels[0](_flat(x), scale), x)  # type: ignore[attr-defined]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        dx, ds = ctx.kernels[1](_flat(_same_layout(grad, x)), _flat(x), scale)  # type: ignore[attr-defined]
        features = max(x[0].numel(), 1) if x.dim() > 1 else max(x.numel(), 1)
        step = ds.reshape(scale.shape) / (features * ctx.high) ** 0.5  # type: ignore[attr-defined]
        return _like(dx, x), step, None, None
