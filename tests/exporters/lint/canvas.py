"""What the corpus is written with: a canvas for graphs, and cases with what the linter shall find.

A builder takes a ``Canvas`` and the name of its input ``x`` (float, [2, 16, 8, 8] unless said otherwise)
and returns the name of its output.  ``Case`` says what the linter is expected to find.

Axes: O output channels, I input channels, H, W kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STEP = 0.02
Dims = Sequence[int | str | None]


class Canvas:
    """Collects nodes and constants; every method returns the name of the value it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.domains: dict[str, int] = {}
        self.rng = np.random.default_rng(0)

    def constant(self, array: Any, dtype: Any = None) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def input(self, name: str, dtype: int = TensorProto.FLOAT, dims: Dims = ()) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op_type.lower()}{len(self.nodes)}"
        node = helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes)
        self.nodes.append(node)
        if node.domain:
            self.domains[node.domain] = 1
        return f"{name}_out"

    def quantize(
        self,
        x: str,
        step: Any = STEP,
        zero_point: int | None = 0,
        dtype: Any = np.int8,
        **extra: Any,
    ) -> str:
        return self.op("QuantizeLinear", x, *self._grid(step, zero_point, dtype), **extra)

    def dequantize(
        self,
        x: str,
        step: Any = STEP,
        zero_point: int | None = 0,
        dtype: Any = np.int8,
        **extra: Any,
    ) -> str:
        return self.op("DequantizeLinear", x, *self._grid(step, zero_point, dtype), **extra)

    def pair(
        self,
        x: str,
        step: Any = STEP,
        zero_point: int | None = 0,
        dtype: Any = np.int8,
        **extra: Any,
    ) -> str:
        return self.dequantize(
            self.quantize(x, step, zero_point, dtype, **extra), step, zero_point, dtype, **extra
        )

    def _grid(self, step: Any, zero_point: int | None, dtype: Any) -> list[str]:
        step = step if isinstance(step, np.ndarray) else np.float32(step)
        grid = [self.constant(step)]
        if zero_point is not None:
            grid.append(self.constant(np.full(step.shape, zero_point, dtype)))
        return grid

    def weights(self, shape: Sequence[int], axis: int = 0, dtype: Any = np.int8) -> str:
        """int8 codes and a DequantizeLinear with one scale for each position along ``axis``."""
        codes = self.rng.integers(-127, 128, shape)
        zero_point = 128 if dtype is np.uint8 else 0
        step = np.full(shape[axis], 0.002, np.float32)
        grid = self.constant(step), self.constant(np.full(shape[axis], zero_point, dtype))
        code = self.constant((codes + zero_point).astype(dtype))
        return self.op("DequantizeLinear", code, *grid, axis=axis)

    def conv(
        self, x: str, w: str | None = None, bias: str | None = "float", name: str = "",
        i: int = 16, o: int = 16, **attributes: Any,
    ) -> str:  # fmt: skip
        w = w or self.weights((o, i, 3, 3))
        if bias == "float":
            bias = self.constant(np.zeros(o, np.float32))
        inputs = [x, w, *([bias] if bias else [])]
        attributes = {"kernel_shape": [3, 3], "pads": [1] * 4, **attributes}
        return self.op("Conv", *inputs, name=name, **attributes)

    def gemm(self, x: str, i: int = 16, o: int = 16, name: str = "", axis: int = 0) -> str:
        bias = self.constant(np.zeros(o, np.float32))
        return self.op("Gemm", x, self.weights((o, i), axis), bias, name=name, transB=1)

    def pooled(self, x: str) -> str:
        """[B, 16, 8, 8] to [B, 16] in the form that both targets like."""
        x = self.pair(self.op("GlobalAveragePool", x, name="pool"))
        return self.op("Reshape", x, self.constant(np.array([0, -1], np.int64)))

    def norm(self, x: str, name: str = "norm") -> str:
        ones = [self.constant(np.ones(16, np.float32)) for _ in range(4)]
        return self.op("BatchNormalization", x, *ones, name=name)


Build = Callable[[Canvas, str], str]


@dataclass(frozen=True)
class Case:
    """A graph, and by target the rules that find something worse than a note in it, no more and no less."""

    name: str
    build: Build
    tensorrt: frozenset[str]
    ort: frozenset[str]
    opset: int = 18
    input: Dims = (2, 16, 8, 8)
    input_type: int = TensorProto.FLOAT
    output_type: int = TensorProto.FLOAT
    loads: bool = True  # whether ONNX Runtime makes a session of it
    edit: Callable[[onnx.ModelProto], None] = lambda model: None

    def model(self) -> onnx.ModelProto:
        canvas = Canvas()
        y = self.build(canvas, "x")
        x = helper.make_tensor_value_info("x", self.input_type, self.input)
        out = onnx.ValueInfoProto(name=y)
        out.type.tensor_type.elem_type = self.output_type
        graph = helper.make_graph(
            canvas.nodes, self.name, [x, *canvas.inputs], [out], canvas.constants
        )
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(*domain) for domain in canvas.domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        self.edit(model)
        return model


CASES: dict[str, Case] = {}


def case(name: str, *, tensorrt: str = "", ort: str = "", **facts: Any) -> Callable[[Build], Build]:
    """Register a builder; expected rules are given as words."""

    def register(build: Build) -> Build:
        assert name not in CASES, name
        CASES[name] = Case(
            name, build, frozenset(tensorrt.split()), frozenset(ort.split()), **facts
        )
        return build

    return register
