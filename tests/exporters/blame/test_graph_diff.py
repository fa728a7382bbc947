"""Differences between two files of the same network, each on its layer, and none where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporters.blame.graph_diff import differences
from exporters.blame.graph_layers import GraphLayers


@pytest.fixture
def model(classifier: Path) -> onnx.ModelProto:
    return onnx.load(classifier)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.name == name)


def changed(model: onnx.ModelProto, value: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == value:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), value))


def test_a_file_is_itself_also_under_other_names(model: onnx.ModelProto) -> None:
    assert differences(model, model) == []
    renamed = copy_of(model)
    for index, each in enumerate(renamed.graph.node):
        each.name = f"other{index}"
    assert differences(model, renamed) == []


def test_layers_own_what_follows_them(model: onnx.ModelProto) -> None:
    layers = GraphLayers(model)
    owned = {each.name: layers.of(each) for each in model.graph.node}
    pairs = [(layers.of(one), layers.of(two)) for one, two in layers.pairs()]
    assert [one for one, _ in pairs] == ["x", "stem", "first", "second", "join", "pool", "head"]
    assert all(one == two for one, two in pairs)
    assert owned["stem"] == "stem" and owned["join"] == "join"
    assert layers.first(node(model, "stem")) and not layers.first(node(model, "first"))


def test_constants(model: onnx.ModelProto) -> None:
    suspect = copy_of(model)
    bias = node(suspect, "first").input[2]
    changed(suspect, bias, lambda array: array + np.float32(0.5))
    (found,) = differences(model, suspect)
    assert (found.layer, found.kind) == ("first", "constant")
    assert "differs in 8 of 8 values" in found.what

    suspect = copy_of(model)
    weights, dequantize = GraphLayers(suspect).weights_of(node(suspect, "second"))
    assert dequantize is not None
    changed(suspect, dequantize.input[1], lambda array: array * np.float32(4))
    (found,) = differences(model, suspect)
    assert found.layer == "second"
    assert "weights of second, dequantized, are 4 times what" in found.what

    suspect = copy_of(model)
    changed(
        suspect, weights, lambda array: np.where(array == array.max(), 0, array).astype(np.int8)
    )
    (found,) = differences(model, suspect)
    assert (found.layer, found.kind) == ("second", "constant")


def test_rounding_is_no_difference(model: onnx.ModelProto) -> None:
    suspect = copy_of(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            changed(suspect, tensor.name, lambda array: np.asarray(array * np.float32(1.002)))
    assert differences(model, suspect) == []


def test_the_same_weights_in_other_codes_are_no_difference(model: onnx.ModelProto) -> None:
    halved, doubled = copy_of(model), copy_of(model)
    layers = GraphLayers(model)
    weights, dequantize = layers.weights_of(node(model, "second"))
    assert dequantize is not None
    scale = dequantize.input[1]
    even = layers.graph.array(weights) // 2
    for each, factor in ((halved, 1), (doubled, 2)):
        changed(each, weights, lambda _, factor=factor: (even * factor).astype(np.int8))
        changed(each, scale, lambda array, factor=factor: array / np.float32(factor))
    assert differences(halved, doubled) == []
    assert differences(model, halved) != []


def test_nodes_that_are_gone_or_new(model: onnx.ModelProto) -> None:
    suspect = copy_of(model)
    relu = next(each for each in suspect.graph.node if each.op_type == "Relu")
    after = next(each for each in suspect.graph.node if relu.output[0] in each.input)
    after.input[0] = relu.input[0]
    suspect.graph.node.remove(relu)
    assert [(each.layer, each.kind) for each in differences(model, suspect)] == [
        ("stem", "missing")
    ]
    assert [(each.layer, each.kind) for each in differences(suspect, model)] == [("stem", "extra")]


def test_wires_that_lead_elsewhere(model: onnx.ModelProto) -> None:
    suspect = copy_of(model)
    join = node(suspect, "join")
    join.input[0] = join.input[1]
    (found,) = differences(model, suspect)
    assert (found.layer, found.kind) == ("join", "wiring")
    assert "instead of" in found.what


def test_a_constant_that_became_a_value(model: onnx.ModelProto) -> None:
    suspect = copy_of(model)
    first = node(suspect, "first")
    zeros = numpy_helper.from_array(np.zeros(8, np.float32), "zeros")
    suspect.graph.node.insert(0, helper.make_node("Identity", ["zeros"], ["made"], "made"))
    suspect.graph.initializer.append(zeros)
    first.input[2] = "made"
    found = differences(model, suspect)
    assert {each.kind for each in found} == {"wiring", "extra"}
    del first.input[2:]
    assert "has 2 inputs instead of 3" in differences(model, suspect)[0].what
