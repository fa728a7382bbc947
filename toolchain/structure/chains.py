"""Channels that one layer makes and the next ones eat, found without any dependency graph.

The fallback for networks that torch-pruning cannot follow at all: from each convolution or linear
layer, walk the traced graph through modules and functions that work on every channel by itself. If the
walk ends in convolutions and linear layers only, the channels are a group; else the group is left whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from deploy.errors import StructureError
from toolchain.graph import RELU, RELU6, trace
from toolchain.structure.plan import Group, Slice
from toolchain.structure.slim import axis_size, is_depthwise

_BY_CHANNEL_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.SiLU,
    nn.GELU,
    nn.LeakyReLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    _AvgPoolNd,
    _AdaptiveAvgPoolNd,
    _MaxPoolNd,
)
_BY_CHANNEL: frozenset[Callable[..., Any] | str] = (
    RELU
    | RELU6
    | frozenset(
        {
            F.silu,
            F.gelu,
            F.leaky_relu,
            F.hardswish,
            F.sigmoid,
            F.tanh,
            F.dropout,
            F.avg_pool2d,
            F.max_pool2d,
            F.adaptive_avg_pool2d,
            torch.sigmoid,
            torch.tanh,
            "sigmoid",
            "tanh",
            "contiguous",
        }
    )
)


def find_chains(network: nn.Module, why: str) -> list[Group]:
    """A group per layer; those that are no plain chain carry ``why`` as the start of their reason."""
    try:
        graph = trace(network)
    except StructureError as error:
        why = f"{why}; {error}"
        return [
            _whole(name, module, why)
            for name, module in network.named_modules()
            if isinstance(module, _ConvNd | nn.Linear) and not is_depthwise(module)
        ]
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    groups = []
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        module = graph.get_submodule(name)
        if isinstance(module, _ConvNd | nn.Linear) and not is_depthwise(module):
            groups.append(_chain(graph, node, name, module, calls, why))
    return groups


def _whole(name: str, module: nn.Module, reason: str) -> Group:
    channels = axis_size(module, "out")
    index = tuple((channel,) for channel in range(channels))
    return Group(name, channels, (Slice(name, "out", index),), reason)


def _chain(
    graph: fx.GraphModule,
    root: fx.Node,
    name: str,
    module: nn.Module,
    calls: dict[str, int],
    why: str,
) -> Group:
    whole = _whole(name, module, "")
    slices = list(whole.slices)

    def stop(reason: str) -> Group:
        return Group(name, whole.channels, whole.slices, f"{why}; {reason}")

    if calls[name] > 1:
        return stop(f"{name} runs more than once")
    waiting = list(root.users)
    while waiting:
        node = waiting.pop()
        if node.op == "output":
            return stop("network output")
        if node.op == "call_module":
            path = str(node.target)
            eater = graph.get_submodule(path)
            if isinstance(eater, _BY_CHANNEL_MODULES):
                waiting.extend(node.users)
                continue
            if calls[path] > 1:
                return stop(f"{path} runs more than once")
            if isinstance(eater, _BatchNorm) or is_depthwise(eater):
                slices.append(Slice(path, "out", whole.slices[0].index))
                waiting.extend(node.users)
                continue
            if isinstance(eater, _ConvNd | nn.Linear) and axis_size(eater, "in") == whole.channels:
                slices.append(Slice(path, "in", whole.slices[0].index))
                continue
            return stop(f"{path} is not followed")
        if node.op in ("call_function", "call_method") and node.target in _BY_CHANNEL:
            waiting.extend(node.users)
            continue
        return stop(f"{node.name} is not followed")
    return Group(name, whole.channels, tuple(slices))
