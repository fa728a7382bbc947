"""The graph as rules look at it: constants through nodes, grids, shapes, subgraphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from exporters.lint.view import GraphView, attributes_of, label
from tests.exporters.lint.canvas import STEP, Canvas, Case
from tests.exporters.lint.corpus import CASES


def view_of(name: str) -> GraphView:
    return GraphView(CASES[name].model())


def view(build: object, **facts: object) -> GraphView:
    return GraphView(Case("view", build, frozenset(), frozenset(), **facts).model())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("conv-signed", STEP),
        ("zero-point-through-identity", STEP),
        ("zero-point-through-cast", STEP),
        ("scale-computed-from-constants", 0.02),
    ],
)
def test_grids_are_found_through_constant_nodes(name: str, scale: float) -> None:
    graph = view_of(name)
    grid = graph.grid(graph.of_type("QuantizeLinear")[0])
    assert grid.scale == pytest.approx(scale)
    assert (grid.dtype, grid.zero_is_constant, grid.per_channel) == ("int8", True, False)
    assert (grid.lowest, grid.highest) == pytest.approx((-128 * scale, 127 * scale))


def test_grids_that_are_not_constant() -> None:
    graph = view_of("scale-computed-from-the-data")
    grid = graph.grid(graph.of_type("QuantizeLinear")[0])
    assert grid.scale is None
    assert grid.same_as(grid) is None
    zero = view_of("zero-point-from-an-input")
    assert not zero.grid(zero.of_type("QuantizeLinear")[0]).zero_is_constant


def test_a_missing_zero_point_means_uint8() -> None:
    graph = view_of("no-zero-point-input")
    grids = [graph.grid(node) for node in graph.of_type("QuantizeLinear", "DequantizeLinear")]
    assert [grid.dtype for grid in grids] == ["uint8", "uint8", "int8", "uint8", "uint8"]


def test_output_dtype_names_the_codes() -> None:
    def build(g: Canvas, x: str) -> str:
        codes = g.op(
            "QuantizeLinear", x, g.constant(STEP, np.float32), output_dtype=TensorProto.INT8
        )
        return g.dequantize(codes, zero_point=None)

    graph = view(build, opset=21)
    assert graph.grid(graph.of_type("QuantizeLinear")[0]).dtype == "int8"


def test_each_grid_once() -> None:
    graph = view_of("conv-signed")
    assert [node.op_type for node in graph.grid_nodes()] == [
        "QuantizeLinear",
        "DequantizeLinear",
        "QuantizeLinear",
    ]
    assert len(list(view_of("pair-with-two-scales").grid_nodes())) == 4


def test_per_channel_weights() -> None:
    graph = view_of("conv-signed")
    (convolution,) = graph.of_type("Conv")
    dequantize = graph.weight_dequantizer(convolution.input[1])
    assert dequantize is not None
    assert graph.is_weight(dequantize)
    assert graph.grid(dequantize).per_channel
    assert str(graph.grid(dequantize)) == "int8, 16 scales, zero point 0"
    assert graph.weight_dequantizer(convolution.input[0]) is None


def test_weights_through_a_transpose() -> None:
    graph = view_of("weights-through-transpose")
    (convolution,) = graph.of_type("Conv")
    assert graph.dequantizer(convolution.input[1]) is None
    assert graph.weight_dequantizer(convolution.input[1]) is not None


def test_random_numbers_are_no_constants() -> None:
    def build(g: Canvas, x: str) -> str:
        return g.op("Add", x, g.op("RandomNormal", shape=[2, 16, 8, 8]), name="join")

    graph = view(build)
    (join,) = graph.of_type("Add")
    assert graph.is_activation(join.input[1])


def test_shapes_are_inferred() -> None:
    graph = view_of("dynamic-batch")
    (convolution,) = graph.of_type("Conv")
    assert graph.shape(convolution.output[0]) == ("batch", 16, 8, 8)
    assert graph.dtype(convolution.output[0]) == "float"
    assert graph.shape("nothing") is None
    assert graph.dtype("nothing") == ""


def test_nodes_of_subgraphs() -> None:
    graph = view_of("control-flow-if")
    assert "Relu" not in {node.op_type for node in graph.nodes}
    assert {"Relu", "Neg"} <= {node.op_type for node in graph.all_nodes}


def test_initializers_that_are_listed_as_inputs_are_constants() -> None:
    """Files of IR version 3 list every initializer among the inputs."""
    model = CASES["conv-signed"].model()
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    graph = GraphView(model)
    assert list(graph.inputs) == ["x"]


def test_labels_and_attributes() -> None:
    graph = view_of("control-flow-loop")
    (loop,) = graph.of_type("Loop")
    assert label(loop) == "repeat"
    assert attributes_of(loop) == {}, "graphs are left out"
    (pool,) = view_of("max-pool").of_type("MaxPool")
    assert attributes_of(pool) == {"kernel_shape": [2, 2], "strides": [2, 2]}
