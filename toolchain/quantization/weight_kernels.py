"""Mask, fake quantizer and cast of a convolution's weight in one pass forward and one pass backward.

    v = M w / s
    student   y = s . clip(round(v), -Q, Q)        dw = M dy   where |v| <= Q, else 0
                                                   ds = sum dy . (round(v) - v | -Q | Q) / sqrt(n Q)
    teacher   y = the same where M, w elsewhere    dw = (1 - M) dy

What `WeightView` does in a dozen passes, each too short to be shared by threads, is here one compiled loop
that ends in the half precision of the convolution, so autocast has nothing left to cast.
The values are the same to the last bit; a learned step's gradient is summed in another order.
Suffixes: O output channels, X positions of the kernel, I input channels.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

TINY = 1e-12
HAIR = 1e-6

Kernel = Callable[..., tuple[Tensor, Tensor]]


def _forward(q_max: float, learned: bool, teacher: bool) -> Kernel:
    def forward(
        w_OXI: Tensor, keep_O: Tensor, keep_I: Tensor, scale_O: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep_OXI = keep_O[:, None, None] & keep_I
        seen_OXI = w_OXI * keep_OXI
        if not learned:
            widest_O = seen_OXI.abs().amax((1, 2)) / q_max
            scale_O = torch.where(widest_O > 0, widest_O, 1.0)
        step_O11 = scale_O.abs().clamp_min(TINY)[:, None, None]
        y_OXI = (seen_OXI / step_O11).round().clamp(-q_max, q_max) * step_O11
        if teacher:
            y_OXI = torch.where(keep_OXI, y_OXI, w_OXI)
        return y_OXI.to(torch.bfloat16), scale_O

    return forward


def _backward(q_max: float, learned: bool, teacher: bool) -> Kernel:
    def backward(
        grad_OXI: Tensor, w_OXI: Tensor, keep_O: Tensor, keep_I: Tensor, scale_O: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep_OXI = keep_O[:, None, None] & keep_I
        grad_OXI = grad_OXI.float()
        if teacher:
            return torch.where(keep_OXI, 0.0, grad_OXI), scale_O
        step_O11 = scale_O.abs().clamp_min(TINY)[:, None, None]
        v_OXI = w_OXI * keep_OXI / step_O11
        inside_OXI = v_OXI.abs() <= q_max * (1 + HAIR)
        dw_OXI = torch.where(inside_OXI & keep_OXI, grad_OXI, 0.0)
        if not learned:
            return dw_OXI, scale_O
        q_OXI = v_OXI.round().clamp(-q_max, q_max)
        ds_OXI = torch.where(inside_OXI, q_OXI - v_OXI, q_OXI) * grad_OXI
        steps = (w_OXI.shape[1] * w_OXI.shape[2] * q_max) ** 0.5
        return dw_OXI, ds_OXI.sum((1, 2)) / steps * scale_O.sign()

    return backward


@cache
def _kernels(q_max: float, learned: bool, teacher: bool) -> tuple[Kernel, Kernel]:
    return (
        torch.compile(_own(_forward(q_max, learned, teacher)), dynamic=True),
        torch.compile(_own(_backward(q_max, learned, teacher)), dynamic=True),
    )


def _own(kernel: Kernel) -> Kernel:
    """The same function with a code object of its own: recompilations are counted, and bounded, by these."""
    assert isinstance(kernel, types.FunctionType)
    return types.FunctionType(
        kernel.__code__.replace(), kernel.__globals__, closure=kernel.__closure__
    )


def _flat(w_OIX: Tensor) -> Tensor:
    """A channels-last weight as [O, X, I] in the order of memory."""
    return w_OIX.permute(0, 2, 3, 1).flatten(1, 2)


def _like(flat_OXI: Tensor, w_OIX: Tensor) -> Tensor:
    """The inverse of `_flat`."""
    o, i, h, w = w_OIX.shape
    return flat_OXI.view(o, h, w, i).permute(0, 3, 1, 2)


def fits(weight: Tensor) -> bool:
    """Whether the kernels take this tensor: a float32 convolution weight in channels-last layout."""
    return (
        weight.dim() == 4
        and weight.dtype is torch.float32
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


class QuantizeWeight(torch.autograd.Function):
    """``apply(w_OIX, keep_O, keep_I, scale_O, q_max, learned, teacher)`` to (weight in bf16, scale_O).

    The teacher's view sends no gradient to the weights that the student keeps, nor to the steps.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        w_OIX: Tensor,
        keep_O: Tensor,
        keep_I: Tensor,
        scale_O: Tensor,
        q_max: float,
        learned: bool,
        teacher: bool,
    ) -> tuple[Tensor, Tensor]:
        forward, ctx.backward_kernel = _kernels(q_max, learned, teacher)  # type: ignore[attr-defined]
        y_OXI, used_O = forward(_flat(w_OIX), keep_O, keep_I, scale_O)
        used_O = used_O.clone() if used_O is scale_O else used_O
        ctx.save_for_backward(w_OIX, keep_O, keep_I, used_O)
        ctx.learned = learned and not teacher  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(used_O)
        return _like(y_OXI, w_OIX), used_O

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_OIX: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        w_OIX, keep_O, keep_I, scale_O = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_OXI = _flat(grad_OIX.contiguous(memory_format=torch.channels_last))
        dw_OXI, ds_O = ctx.backward_kernel(grad_OXI, _flat(w_OIX), keep_O, keep_I, scale_O)  # type: ignore[attr-defined]
        step = ds_O if ctx.learned else None  # type: ignore[attr-defined]
        return _like(dw_OXI, w_OIX), None, None, step, None, None, None
