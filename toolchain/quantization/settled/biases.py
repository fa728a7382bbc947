"""The last change to a student before it ships: biases become numbers that integer kernels have.

    bias = k . s_x . s_w,  k an integer

Kernels add a bias in int32, in units of the input's step times the weight's, and a runtime rounds it to
them. The shift is far below a step of the result, but it turns roundings over, and in a deep network one
turned rounding turns others: decisions of the shipped file would differ from the student's for no other
reason. Here the student itself gets the bias that will be computed with, so that nothing is left to round.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from toolchain import graph
from toolchain.quantization.attached import latent_parameter
from toolchain.quantization.lowered_layers import (
    FoldedLayer,
    fold,
    for_kernels,
    input_quantizer,
    is_float_head,
)


@torch.no_grad()
def settle_biases(network: fx.GraphModule) -> float:
    """Shift the biases of quantized layers to the int32 grid, in place; returns the largest shift.

    Where a batch norm follows it is the norm's shift that moves, or, if it has none, its mean.
    """
    largest = 0.0
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for node in network.graph.nodes:
        layer = graph.module_of(network, node)
        if not isinstance(layer, _ConvNd | nn.Linear):
            continue
        folded = fold(network, node, layer)
        owner = node if folded.norm is None else folded.norm
        # Of two calls each has a grid of its own; a float kernel has none.
        if calls[str(owner.target)] > 1 or is_float_head(network, layer, owner):
            continue
        shift_O = _shift(network, node, folded)
        if shift_O is not None:
            _add(layer, graph.module_of(network, owner), folded, shift_O)
            largest = max(largest, float(shift_O.abs().max()))
    return largest


def _shift(network: fx.GraphModule, node: fx.Node, folded: FoldedLayer) -> Tensor | None:
    """From each bias to the nearest number of its grid, in float64; None where there is no grid."""
    quantizer = input_quantizer(network, node)
    bias_O, scale_O = folded.bias_O, folded.scale_O
    if quantizer is None or quantizer.bypassed or bias_O is None or scale_O is None:
        return None
    if len(bias_O) != len(scale_O):
        return None
    _, scale_O = for_kernels(
        network, node, folded.q_OX, scale_O, bias_O.to(scale_O.dtype), folded.axis, "ort-cpu"
    )
    grid_O = scale_O.double() * float(quantizer.step())
    return (bias_O / grid_O).round() * grid_O - bias_O


def _add(layer: nn.Module, owner: nn.Module | None, folded: FoldedLayer, shift_O: Tensor) -> None:
    if not isinstance(owner, _BatchNorm):
        bias_O = latent_parameter(layer, "bias")
        bias_O.copy_(bias_O.double() + shift_O)
    elif owner.affine:
        beta_O = latent_parameter(owner, "bias")
        beta_O.copy_(beta_O.double() + shift_O)
    else:
        assert owner.running_mean is not None and folded.factor_O is not None
        owner.running_mean.copy_(owner.running_mean.double() - shift_O / folded.factor_O)
