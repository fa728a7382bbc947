"""Operations without weights in the form that a target's integer kernels take: pools, shortcuts, concats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deploy.targets import Target
from exporters import qdq_ops
from toolchain import graph
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import quantizer_of
from toolchain.quantization.lowered_grids import fixed_grid
from toolchain.quantization.lowered_layers import IntegerLayer


class GlobalAveragePool(nn.Module):
    """Pooling to 1x1, flattened where the network's own operation leaves no spatial axes."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x_BCHW: Tensor) -> Tensor:
        pooled = qdq_ops.global_average_pool(x_BCHW)
        return qdq_ops.flatten(pooled) if self.flat else pooled


class Mean(nn.Module):
    """Mean over some axes, e.g. over tokens."""

    def __init__(self, axes: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.axes, self.keepdim = list(axes), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return qdq_ops.mean(x, self.axes, self.keepdim)


class Flatten(nn.Module):
    """[B, ...] to [B, rest]."""

    def forward(self, x: Tensor) -> Tensor:
        return qdq_ops.flatten(x)


def lower_shortcut(
    network: fx.GraphModule, node: fx.Node, module: PadShortcut, target: Target
) -> None:
    """A quantized slice-and-pad as a 1x1 convolution with weights 0 and 1, on the grid it was on."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    quantizer = quantizer_of(network, graph.origin(network, source))
    if quantizer is None or quantizer.bypassed:
        return
    q_OI = torch.zeros(module.out_channels, module.in_channels, 1, 1, dtype=torch.int8)
    for place, channel in enumerate(module.source_O.tolist()):
        if channel >= 0:
            q_OI[place, channel] = 1
    conv = nn.Conv2d(
        module.in_channels, module.out_channels, 1, module.stride, bias=False, device="meta"
    )
    one_O = torch.ones(module.out_channels, dtype=quantizer.scale.dtype)
    layer = IntegerLayer(conv, q_OI, one_O, None)
    made = fixed_grid(quantizer, target)
    assert isinstance(made, qdq_ops.FakeQuantize)
    # The values are on the grid already: requantizing them changes nothing, and clips nothing.
    grid = qdq_ops.FakeQuantize(made.scale, made.zero_point, made.signed, relu=False)
    network.set_submodule(str(node.target), nn.Sequential(layer, grid))


def share_concat_grid(network: fx.GraphModule, node: fx.Node, target: Target) -> None:
    """Put every input of a concatenation on the grid of its result as well.

    TensorRT copies integers where all of them have one scale. Rounding to the result's grid before
    the copy gives what rounding after it gives.
    """
    users = list(node.users)
    grid = quantizer_of(network, users[0]) if len(users) == 1 else None
    if grid is None or grid.bypassed:
        return
    for place, source in enumerate(node.all_input_nodes):
        known = quantizer_of(network, graph.origin(network, source))
        if known is not None and _same_values(known, grid, target):
            continue
        name = f"quantizers.{node.name}_{place}"
        network.add_submodule(name, fixed_grid(grid, target))
        with network.graph.inserting_before(node):
            on_grid = network.graph.call_module(name, (source,))
        node.replace_input_with(source, on_grid)


def _same_values(one: ActivationQuantizer, two: ActivationQuantizer, target: Target) -> bool:
    """Whether both have one step on the target; two such grids differ in where they end at most."""
    grids = fixed_grid(one, target), fixed_grid(two, target)
    steps = {grid.scale for grid in grids if isinstance(grid, qdq_ops.FakeQuantize)}
    return len(steps) == 1 and not one.bypassed


def _replace(network: fx.GraphModule, node: fx.Node, module: nn.Module, name: str) -> None:
    network.add_submodule(name, module)
    with network.graph.inserting_after(node):
        new = network.graph.call_module(name, (node.args[0],))
    node.replace_all_uses_with(new)
    network.graph.erase_node(node)


def lower_pool(network: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    """A mean over height and width as the one operator that has integer kernels; others as they are."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if module.output_size in (1, (1, 1)):
            _replace(network, node, GlobalAveragePool(flat=False), f"lowered_{node.name}")
    elif node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
        if size in (1, (1, 1), [1, 1]):
            _replace(network, node, GlobalAveragePool(flat=False), f"lowered_{node.name}")
    elif node.target in (torch.mean, "mean"):
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        given = dims if isinstance(dims, list | tuple) else [dims]
        axes = [axis for axis in given if isinstance(axis, int)]
        keep = bool(node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False))
        if sorted(axis % 4 for axis in axes) == [2, 3]:
            _replace(network, node, GlobalAveragePool(flat=not keep), f"lowered_{node.name}")
        elif axes and len(axes) == len(given) and "dtype" not in node.kwargs:
            _replace(network, node, Mean(axes, keep), f"lowered_{node.name}")


def lower_flatten(network: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    """[B, ...] to [B, rest] as the one operator that integer kernels see through."""
    if isinstance(module, nn.Flatten):
        plain = (module.start_dim, module.end_dim) == (1, -1)
    else:
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        plain = (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
    if plain:
        _replace(network, node, Flatten(), f"lowered_{node.name}")
