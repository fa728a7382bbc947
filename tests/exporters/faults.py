"""Faults put into Q/DQ graphs on purpose.  Each returns the damaged copy; the layer is named by the caller.

Axes: O output channels.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.blame.graph_layers import GraphLayers


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def weighted(model: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    layers = GraphLayers(model)
    return next(node for node in layers.weighted() if layers.of(node) == layer)


def pair_behind(model: onnx.ModelProto, layer: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear of the layer's output."""
    layers = GraphLayers(model)
    return next(pair for pair in layers.pairs() if layers.of(pair[0]) == layer)


def weight_scale_times(model: onnx.ModelProto, layer: str, factor: float = 4.0) -> onnx.ModelProto:
    model = _copy(model)
    layers = GraphLayers(model)
    _, dequantize = layers.weights_of(weighted(model, layer))
    assert dequantize is not None
    scale_O = layers.graph.array(dequantize.input[1]) * np.float32(factor)
    dequantize.input[1] = _constant(model, f"{layer}.scale_O.fault", scale_O)
    return model


def activation_scale_times(
    model: onnx.ModelProto, layer: str, factor: float = 4.0
) -> onnx.ModelProto:
    """Both of the pair: the grid is coarser, and reaches further than values do."""
    model = _copy(model)
    pair = pair_behind(model, layer)
    scale = GraphLayers(model).graph.array(pair[0].input[1]) * np.float32(factor)
    name = _constant(model, f"{layer}.step.fault", scale)
    for node in pair:
        node.input[1] = name
    return model


def batch_norm_unfolded(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """The layer's scales and bias without a norm that then follows it: the same values, in float."""
    model = _copy(model)
    layers = GraphLayers(model)
    conv = weighted(model, layer)
    _, dequantize = layers.weights_of(conv)
    assert dequantize is not None
    scale_O = layers.graph.array(dequantize.input[1])
    bias_O = layers.graph.array(conv.input[2])
    rng = np.random.default_rng(0)
    f_O, mean_O = rng.uniform(0.5, 2, scale_O.shape), rng.normal(size=scale_O.shape)
    dequantize.input[1] = _constant(model, "bn.scale_O", (scale_O / f_O).astype(np.float32))
    conv.input[2] = _constant(model, "bn.bias_O", (bias_O / f_O + mean_O).astype(np.float32))
    norm = [
        _constant(model, f"bn.{name}", array.astype(np.float32))
        for name, array in {
            "gamma": f_O, "beta": np.zeros_like(f_O), "mean": mean_O, "var": np.ones_like(f_O),
        }.items()
    ]  # fmt: skip
    raw, output = f"{conv.output[0]}.raw", conv.output[0]
    conv.output[0] = raw
    node = helper.make_node(
        "BatchNormalization", [raw, *norm], [output], f"{layer}/BatchNormalization", epsilon=0.0
    )
    place = [each.name for each in model.graph.node].index(conv.name)
    model.graph.node.insert(place + 1, node)
    return model


def pair_deleted(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """No Q/DQ pair behind the layer; who read the pair reads the layer."""
    model = _copy(model)
    quantize, dequantize = pair_behind(model, layer)
    for node in model.graph.node:
        for place, value in enumerate(node.input):
            if value == dequantize.output[0]:
                node.input[place] = quantize.input[0]
    model.graph.node.remove(quantize)
    model.graph.node.remove(dequantize)
    return model


def residual_branches(model: onnx.ModelProto) -> list[str]:
    """Layers with weights whose quantized output is an input of an Add."""
    layers = GraphLayers(model)
    found = []
    for node in model.graph.node:
        if node.op_type == "Add":
            for value in node.input:
                made_by = layers.graph.producer.get(value)
                if made_by is not None and made_by.op_type == "DequantizeLinear":
                    name = layers.of(made_by)
                    if name in {layers.of(each) for each in layers.weighted()}:
                        found.append(name)
    return found
