"""Small Q/DQ graphs for tests, written node by node with onnx.helper.

Axes: O output channels, I input channels, H, W kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

STEP = 0.02


class Graph:
    """Collects nodes and constants; every method returns the name of the value it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def pair(self, x: str, step: float = STEP, zero_point: int = 0, dtype: type = np.uint8) -> str:
        grid = self.constant(np.float32(step)), self.constant(dtype(zero_point))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *grid), *grid)

    def weights(self, w_OX: np.ndarray) -> str:
        scale_O = (np.abs(w_OX).reshape(len(w_OX), -1).max(axis=1) / 127).astype(np.float32)
        wide = scale_O.reshape(-1, *[1] * (w_OX.ndim - 1))
        codes = self.constant(np.clip(np.rint(w_OX / wide), -127, 127).astype(np.int8))
        zeros = self.constant(np.zeros(len(w_OX), np.int8))
        return self.op("DequantizeLinear", codes, self.constant(scale_O), zeros, axis=0)

    def conv(self, x: str, i: int = 8, o: int = 8, name: str = "", stride: int = 1) -> str:
        w_OIHW = self.rng.normal(0, 0.2, (o, i, 3, 3)).astype(np.float32)
        bias = self.constant(self.rng.normal(0, 0.1, o).astype(np.float32))
        return self.op(
            "Conv", x, self.weights(w_OIHW), bias,
            name=name, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2,
        )  # fmt: skip

    def gemm(self, x: str, i: int = 8, o: int = 4, name: str = "") -> str:
        w_OI = self.rng.normal(0, 0.3, (o, i)).astype(np.float32)
        bias = self.constant(np.zeros(o, np.float32))
        return self.op("Gemm", x, self.weights(w_OI), bias, name=name, transB=1)

    def model(self, y: str, rank: int = 4, opset: int = 17, channels: int = 8) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, 8, 8])
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * rank)
        graph = helper.make_graph(self.nodes, "test", [x], [out], self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9
        )
        onnx.checker.check_model(model)
        return model


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes the graph that ``build(graph, quantized input)`` makes and returns its path."""

    def save(build: Callable[[Graph, str], str], rank: int = 4, opset: int = 17) -> Path:
        graph = Graph()
        path = tmp_path / "graph.onnx"
        onnx.save(graph.model(build(graph, graph.pair("x")), rank, opset), str(path))
        return path

    return save


@pytest.fixture
def classifier(save: Callable[..., Path]) -> Path:
    """A residual block, pooling and a quantized head: all integer kernels."""
    return save(_classifier, rank=2)


def _classifier(graph: Graph, x: str) -> str:
    x = graph.pair(graph.op("Relu", graph.conv(x, name="stem")))
    y = graph.pair(graph.op("Relu", graph.conv(x, name="first")))
    y = graph.pair(graph.conv(y, name="second"), STEP, 128)
    x = graph.pair(graph.op("Relu", graph.op("Add", x, y, name="join")))
    x = graph.pair(graph.op("GlobalAveragePool", x, name="pool"), STEP / 4)
    x = graph.op("Reshape", x, graph.constant(np.array([0, -1], np.int64)))
    return graph.pair(graph.gemm(x, name="head"), 0.01, 128)


@pytest.fixture
def float_classifier(tmp_path: Path) -> Path:
    """A float network with a slice-and-pad shortcut and BatchNorm, as torch would export it."""
    path = tmp_path / "float.onnx"
    graph = Graph()

    def conv(x: str, i: int, o: int, stride: int) -> str:
        weight = graph.constant(graph.rng.normal(0, 0.2, (o, i, 3, 3)).astype(np.float32))
        y = graph.op("Conv", x, weight, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)
        norm = [graph.constant(graph.rng.uniform(0.5, 1.5, o).astype(np.float32)) for _ in range(4)]
        return graph.op("BatchNormalization", y, *norm)

    def ints(*values: int) -> str:
        return graph.constant(np.array(values, np.int64))

    x = graph.op("Relu", conv("x", 8, 8, 1))
    y = conv(graph.op("Relu", conv(x, 8, 16, 2)), 16, 16, 1)
    x = graph.op("Slice", x, ints(0, 0), ints(8, 8), ints(2, 3), ints(2, 2))
    x = graph.op("Pad", x, ints(0, 4, 0, 0, 0, 4, 0, 0), graph.constant(np.float32(0)))
    x = graph.op("GlobalAveragePool", graph.op("Relu", graph.op("Add", x, y)))
    w_OI = graph.constant(graph.rng.normal(0, 0.3, (4, 16)).astype(np.float32))
    y = graph.op("Gemm", graph.op("Flatten", x), w_OI, transB=1)
    onnx.save(graph.model(y, 2), str(path))
    return path
