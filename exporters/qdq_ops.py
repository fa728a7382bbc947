"""Operators that become QuantizeLinear and DequantizeLinear, computed in torch as a runtime computes them.

    q = clip(round(x / s) + z, low, high)        round half to even
    x' = (q - z) . s

Quantize-linear-13 and dequantize-linear-13 of the ONNX operator set. A lowered graph is built from these
instead of torch's own fake-quantize operators because those fail to export with a dynamic batch and keep
weights as floats; here weights are int8 constants and the exporter has nothing to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("compress_deploy::fake_quantize", mutates_args=())
def fake_quantize(
    x: Tensor, scale: float, zero_point: int, signed: bool, top: int | None = None
) -> Tensor:
    """Put ``x`` on the 8-bit grid with this scale and zero point, whose largest integer is ``top``."""
    low, top = -128 if signed else 0, _largest(signed) if top is None else top
    step = torch.tensor(scale, dtype=x.dtype, device=x.device)
    return ((x / step).round().add_(zero_point).clamp_(low, top) - zero_point) * step


@torch.library.custom_op("compress_deploy::dequantize_weight", mutates_args=())
def dequantize_weight(q_OX: Tensor, scale_O: Tensor, axis: int) -> Tensor:
    """Float weight of int8 values with one scale for each position along ``axis``."""
    shape = [1] * q_OX.dim()
    shape[axis] = -1
    return q_OX.to(scale_O.dtype) * scale_O.view(shape)


@torch.library.custom_op("compress_deploy::global_average_pool", mutates_args=())
def global_average_pool(x_BCHW: Tensor) -> Tensor:
    """Mean over height and width, kept as [B, C, 1, 1]."""
    return x_BCHW.mean((2, 3), keepdim=True)


@torch.library.custom_op("compress_deploy::mean", mutates_args=())
def mean(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """Mean over some axes."""
    return x.mean(axes, keepdim=keepdim)


@torch.library.custom_op("compress_deploy::flatten", mutates_args=())
def flatten(x: Tensor) -> Tensor:
    """[B, ...] to [B, everything else]."""
    return x.flatten(1).clone()


@fake_quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, signed: bool, top: int | None = None) -> Tensor:
    return torch.empty_like(x)


@dequantize_weight.register_fake
def _(q_OX: Tensor, scale_O: Tensor, axis: int) -> Tensor:
    return torch.empty_like(q_OX, dtype=scale_O.dtype)


@global_average_pool.register_fake
def _(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.new_empty((*x_BCHW.shape[:2], 1, 1))


@mean.register_fake
def _(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x.mean(axes, keepdim=keepdim)


@flatten.register_fake
def _(x: Tensor) -> Tensor:
    return x.flatten(1).clone()


class FakeQuantize(torch.nn.Module):
    """A fixed activation grid; ``relu`` is applied first.

    ``top`` is the largest integer in use, by default that of the type.  The integer of a lower one is
    clipped before it is stored: a kernel saturates at its type's end only.
    """

    def __init__(
        self, scale: float, zero_point: int, signed: bool, relu: bool, top: int | None = None
    ) -> None:
        super().__init__()
        # What a file stores is float32; in float64 torch must compute with the same number.
        self.scale = float(np.float32(scale))
        self.zero_point, self.signed, self.relu = zero_point, signed, relu
        self.top = _largest(signed) if top is None else top

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) if self.relu else x
        return fake_quantize(x, self.scale, self.zero_point, self.signed, self.top)


def _largest(signed: bool) -> int:
    return 127 if signed else 255


def translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx writes the operators above, for its ``custom_translation_table``."""
    import onnx
    import onnxscript

    op = onnxscript.values.Opset("", opset)

    def constant(array: np.ndarray) -> Any:
        return op.Constant(value=onnx.numpy_helper.from_array(array))

    def write_fake_quantize(
        x: Any, scale: float, zero_point: int, signed: bool, top: int | None = None
    ) -> Any:
        kind = np.int8 if signed else np.uint8
        step, zero = constant(np.array(scale, np.float32)), constant(np.array(zero_point, kind))
        q = op.QuantizeLinear(x, step, zero)
        if top is not None and top < _largest(signed):
            # Between Q and DQ it keeps no integer kernel from being found; a float one would.
            q = op.Clip(
                q, constant(np.array(-128 if signed else 0, kind)), constant(np.array(top, kind))
            )
        return op.DequantizeLinear(q, step, zero)

    def write_dequantize_weight(q_OX: Any, scale_O: Any, axis: int) -> Any:
        if len(q_OX.shape) > 2:
            return op.DequantizeLinear(q_OX, scale_O, axis=axis)
        # ONNX Runtime fuses a Gemm only where the zero points of its weights are written out.
        zeros_O = constant(np.zeros(q_OX.shape[axis], np.int8))
        return op.DequantizeLinear(q_OX, scale_O, zeros_O, axis=axis)

    def write_global_average_pool(x_BCHW: Any) -> Any:
        return op.GlobalAveragePool(x_BCHW)

    def write_mean(x: Any, axes: Sequence[int], keepdim: bool) -> Any:
        # torch.onnx computes the axes at run time, out of constants; TensorRT wants them written down.
        return op.ReduceMean(x, constant(np.array(axes, np.int64)), keepdims=int(keepdim))

    def write_flatten(x: Any) -> Any:
        # Reshape, not Flatten: ONNX Runtime's integer kernels see through it without another Q/DQ.
        return op.Reshape(x, constant(np.array([0, -1], np.int64)))

    ops = torch.ops.compress_deploy
    return {
        ops.fake_quantize.default: write_fake_quantize,
        ops.dequantize_weight.default: write_dequantize_weight,
        ops.global_average_pool.default: write_global_average_pool,
        ops.mean.default: write_mean,
        ops.flatten.default: write_flatten,
    }
