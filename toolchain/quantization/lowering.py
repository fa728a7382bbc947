"""From a student to the graph that one target's kernels take.

    target          values after a ReLU   other values          weights                bias    last layer
    `ort-cpu`       uint8, zero point 0   uint8, zero point 128  int8, per output channel  float   float
    `tensorrt`      int8, zero point 0    int8, zero point 0    int8, per output channel  float   float
    `tensorrt-fp16` the same, and float16 wherever the others have float32

Grids of activations are in `lowered_grids`, weights and batch norms in `lowered_layers`, everything
else in `lowered_moves`. What is left out is nothing the student computes: lowered and student differ by
float rounding alone, unless the target's grid is another one than the student was trained on.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from deploy.targets import Target
from toolchain import graph
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.attach import AVERAGES, quantizer_of
from toolchain.quantization.attached import strip_views
from toolchain.quantization.lowered_grids import fixed_grid
from toolchain.quantization.lowered_layers import lower_layer, part_shared_layers
from toolchain.quantization.lowered_moves import (
    lower_flatten,
    lower_pool,
    lower_shortcut,
    share_concat_grid,
)

FLATTEN = frozenset({torch.flatten, "flatten"})


@torch.no_grad()
def lower(network: fx.GraphModule, target: Target = "ort-cpu") -> fx.GraphModule:
    """A copy of ``network`` (float or quantized, nothing masked) in the target's form, in eval mode.

    Raises:
        StructureError: A layer or a grid has no form on the target.
    """
    lowered = copy.deepcopy(network).eval()
    part_shared_layers(lowered)
    for node in list(lowered.graph.nodes):
        layer = graph.module_of(lowered, node)
        if isinstance(layer, _ConvNd | nn.Linear):
            lower_layer(lowered, node, layer, target)
    for node in list(lowered.graph.nodes):
        module = graph.module_of(lowered, node)
        if isinstance(module, PadShortcut):
            lower_shortcut(lowered, node, module, target)
        elif isinstance(module, nn.AdaptiveAvgPool2d) or graph.calls(lowered, node, AVERAGES):
            lower_pool(lowered, node, module)
        elif isinstance(module, nn.Flatten) or graph.calls(lowered, node, FLATTEN):
            lower_flatten(lowered, node, module)
        elif target != "ort-cpu" and graph.calls(lowered, node, graph.CONCAT):
            share_concat_grid(lowered, node, target)
    for node in list(lowered.graph.nodes):
        quantizer = quantizer_of(lowered, node)
        if quantizer is not None:
            lowered.set_submodule(str(node.target), fixed_grid(quantizer, target))
    lowered.graph.eliminate_dead_code()
    lowered.delete_all_unused_submodules()
    strip_views(lowered)
    lowered.graph.lint()
    lowered.recompile()
    return lowered
