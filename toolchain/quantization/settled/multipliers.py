"""Weights of quantized layers, scaled so that no sum of integers falls near a half.

    y = s_y . round(m (A + k)),    m = s_x s_w |f| / s_y = p / d,  d odd

A is the integer sum of a layer, k its bias in the same units (`biases`), f the factor of the batch norm
behind it. An integer over an odd d is at least 1 / (2 d) of a step away from every half, while sums in
float32 are right to about 1e-5 of a step: torch, a simulation in float operators and integer kernels then
round to the same integer, whatever the order of their sums. With steps as they were trained, two in a
million values lie so close to a half that the order decides, and in a deep network each of these turns
others over.

    p / d = the nearest of all fractions with odd d from 255 to 511,    or p = 1 where m is below 1/256

A channel's factor moves by less than 1/255, and by far less where it is not small. Weights and their steps
are scaled together, so the int8 weights stay what they were.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from toolchain import graph
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import quantizer_of
from toolchain.quantization.attached import latent_parameter, weight_view
from toolchain.quantization.lowered_layers import fold, input_quantizer
from toolchain.quantization.settled.steps import SAME, nearest_odd

# The least and the largest denominator: a margin of 1/1022 of a step.
COARSEST, FINEST = 255, 511


@torch.no_grad()
def settle_multipliers(network: fx.GraphModule) -> float:
    """Scale weights in place; returns the largest relative change of a channel.

    Left as they are: layers whose result or input is on no grid, layers that are called more than once, and
    channels whose weights are all zero.
    """
    largest = 0.0
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for node in network.graph.nodes:
        layer = graph.module_of(network, node)
        if not isinstance(layer, _ConvNd | nn.Linear) or calls[str(node.target)] > 1:
            continue
        change_O = _change(network, node, layer)
        if change_O is not None:
            _scale(layer, 1 + change_O)
            largest = max(largest, float(change_O.abs().max()))
    return largest


def fraction(m_O: Tensor) -> Tensor:
    """The fraction of odd denominator that each positive multiplier becomes, in float64.

    What is such a fraction already stays.
    """
    d_D = torch.arange(COARSEST, FINEST + 1, 2, dtype=torch.float64, device=m_O.device)
    p_OD = (m_O[:, None] * d_D).round().clamp_min(1)
    nearest_O = (p_OD / d_D / m_O[:, None] - 1).abs().argmin(1)
    fraction_O = p_OD.gather(1, nearest_O[:, None]).squeeze(1) / d_D[nearest_O]
    return torch.where(m_O * (COARSEST + 1) < 1, 1 / nearest_odd(1 / m_O), fraction_O)


def _change(network: fx.GraphModule, node: fx.Node, layer: _ConvNd | nn.Linear) -> Tensor | None:
    """Relative change of each output channel's multiplier, in float64; None where there is none."""
    folded = fold(network, node, layer)
    result = _result(network, node if folded.norm is None else folded.norm)
    source = input_quantizer(network, node)
    if folded.scale_O is None or result is None or source is None or source.bypassed:
        return None
    if result.bypassed or len(_steps(layer)) != len(folded.scale_O):
        return None
    used_O = (folded.q_OX != 0).transpose(0, folded.axis).flatten(1).any(1)
    m_O = folded.scale_O.double() * float(source.step()) / float(result.step())
    change_O = torch.where(used_O, fraction(m_O) / m_O - 1, 0.0)
    return torch.where(change_O.abs() < SAME, 0.0, change_O)


def _result(network: fx.GraphModule, end: fx.Node) -> ActivationQuantizer | None:
    """The quantizer that alone reads what a layer computes."""
    users = list(end.users)
    return quantizer_of(network, users[0]) if len(users) == 1 else None


def _steps(layer: nn.Module) -> Tensor:
    view = weight_view(layer)
    assert view is not None
    assert view.quantizer is not None
    return view.quantizer.scale_O


def _scale(layer: _ConvNd | nn.Linear, by_O: Tensor) -> None:
    view = weight_view(layer)
    assert view is not None
    weight = latent_parameter(layer, "weight")
    shape = [1] * weight.dim()
    shape[view.out_dim] = -1
    weight.copy_(weight.double() * by_O.view(shape))
    _steps(layer).copy_(_steps(layer).double() * by_O)
