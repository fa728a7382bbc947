"""Operators that become QuantizeLinear and DequantizeLinear, computed in torch as a runtime computes them.

    q = clip(round(x / s) + z, low, high)        round half to even
    x' = (q - z) . s

Quantize-linear-13 and dequantize-linear-13 of the ONNX operator set. A lowered graph is built from these
instead of torch's own fake-quantize operators because those fail to export with a dynamic batch and keep
weights as floats; here weights are int8 constants and the exporter has nothing to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("compress_deploy::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: float, zero_point: int, signed: bool) -> Tensor:
    """Put ``x`` on the 8-bit grid with this scale and zero point."""
    low, high = (-128, 127) if signed else (0, 255)
    step = torch.tensor(scale, dtype=x.dtype, device=x.device)
    return ((x / step).round().add_(zero_point).clamp_(low, high) - zero_point) * step


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


@torch.library.custom_op("compress_deploy::flatten", mutates_args=())
def flatten(x: Tensor) -> Tensor:
    """[B, ...] to [B, everything else]."""
    return x.flatten(1).clone()


@fake_quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, signed: bool) -> Tensor:
    return torch.empty_like(x)


@dequantize_weight.register_fake
def _(q_OX: Tensor, scale_O: Tensor, axis: int) -> Tensor:
    return torch.empty_like(q_OX, dtype=scale_O.dtype)


@global_average_pool.register_fake
def _(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.new_empty((*x_BCHW.shape[:2], 1, 1))


@flatten.register_fake
def _(x: Tensor) -> Tensor:
    return x.flatten(1).clone()


class FakeQuantize(torch.nn.Module):
    """A fixed activation grid; ``relu`` is applied first."""

    def __init__(self, scale: float, zero_point: int, signed: bool, relu: bool) -> None:
        super().__init__()
        self.scale, self.zero_point, self.signed, self.relu = scale, zero_point, signed, relu

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) if self.relu else x
        return fake_quantize(x, self.scale, self.zero_point, self.signed)


def translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx writes the operators above, for its ``custom_translation_table``."""
    import onnx
    import onnxscript

    op = onnxscript.values.Opset("", opset)

    def constant(array: np.ndarray) -> Any:
        return op.Constant(value=onnx.numpy_helper.from_array(array))

    def write_fake_quantize(x: Any, scale: float, zero_point: int, signed: bool) -> Any:
        step = constant(np.array(scale, np.float32))
        zero = constant(np.array(zero_point, np.int8 if signed else np.uint8))
        return op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)

    def write_dequantize_weight(q_OX: Any, scale_O: Any, axis: int) -> Any:
        if len(q_OX.shape) > 2:
            return op.DequantizeLinear(q_OX, scale_O, axis=axis)
        # ONNX Runtime fuses a Gemm only where the zero points of its weights are written out.
        zeros_O = constant(np.zeros(q_OX.shape[axis], np.int8))
        return op.DequantizeLinear(q_OX, scale_O, zeros_O, axis=axis)

    def write_global_average_pool(x_BCHW: Any) -> Any:
        return op.GlobalAveragePool(x_BCHW)

    def write_flatten(x: Any) -> Any:
        # Reshape, not Flatten: ONNX Runtime's integer kernels see through it without another Q/DQ.
        return op.Reshape(x, constant(np.array([0, -1], np.int64)))

    ops = torch.ops.compress_deploy
    return {
        ops.fake_quantize.default: write_fake_quantize,
        ops.dequantize_weight.default: write_dequantize_weight,
        ops.global_average_pool.default: write_global_average_pool,
        ops.flatten.default: write_flatten,
    }
