"""One layer as an ONNX model that can be timed: copies side by side, each ending in a global average pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

COPIES = 8


@dataclass(frozen=True)
class Shape:
    """Everything that decides how long one layer takes."""

    kind: Literal["conv", "transposed", "linear", "add", "pool"]
    in_channels: int
    out_channels: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    precision: Literal["int8", "float"] = "int8"

    @property
    def key(self) -> str:
        def numbers(values: tuple[int, ...]) -> str:
            return "x".join(map(str, values)) or "-"

        return (
            f"{self.precision} {self.kind} {self.in_channels}>{self.out_channels} g{self.groups} "
            f"k{numbers(self.kernel)} s{numbers(self.stride)} p{numbers(self.padding)} "
            f"{numbers(self.size)}"
        )


def build_graph(shape: Shape) -> Any:
    """The ONNX model of ``COPIES`` copies of one layer side by side."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    int8 = shape.precision == "int8"
    nodes: list[Any] = []
    constants: dict[str, Any] = {"scale": np.float32(0.02), "zero": np.uint8(0)}

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def quantize(name: str) -> str:
        return node("QuantizeLinear", [name, "scale", "zero"], f"{name}_q") if int8 else name

    def dequantize(name: str) -> str:
        return node("DequantizeLinear", [name, "scale", "zero"], f"{name}_dq") if int8 else name

    def weight(name: str, dims: tuple[int, ...], axis: int) -> str:
        w = random.integers(-127, 128, dims)
        if not int8:
            constants[name] = (w * 0.002).astype(np.float32)
            return name
        constants[f"{name}_i"] = w.astype(np.int8)
        constants[f"{name}_s"] = np.full(dims[axis], 0.002, np.float32)
        constants[f"{name}_z"] = np.zeros(dims[axis], np.int8)
        return node("DequantizeLinear", [f"{name}_i", f"{name}_s", f"{name}_z"], name, axis=axis)

    def layer(copy: int, before: str) -> str:
        if shape.kind == "pool":
            return x
        if shape.kind == "add":
            return node("Relu", [node("Add", [before, x], f"sum{copy}")], f"y{copy}")
        constants[f"b{copy}"] = np.zeros(shape.out_channels, np.float32)
        sides = (shape.out_channels, shape.in_channels // shape.groups)
        if shape.kind == "linear":
            inputs = [x, weight(f"w{copy}", sides, 0), f"b{copy}"]
            return node("Gemm", inputs, f"y{copy}", transB=1)
        axis = 0
        if shape.kind == "transposed":
            sides = (shape.in_channels, shape.out_channels // shape.groups)
            axis = 1 if shape.groups == 1 else 0
        inputs = [x, weight(f"w{copy}", (*sides, *shape.kernel), axis), f"b{copy}"]
        op = "ConvTranspose" if shape.kind == "transposed" else "Conv"
        y = node(
            op,
            inputs,
            f"sum{copy}",
            kernel_shape=shape.kernel,
            strides=shape.stride,
            group=shape.groups,
            pads=[*shape.padding, *shape.padding],
        )
        return node("Relu", [y], f"y{copy}")

    x = y = dequantize("x")
    outputs = []
    for copy in range(COPIES):
        y = layer(copy, y)
        if shape.kind != "pool":
            y = quantize(y)
            if shape.kind == "linear":
                outputs.append(y)
                continue
            y = dequantize(y)
        outputs.append(quantize(node("GlobalAveragePool", [y], f"pool{copy}")))
    element = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    ends = [1, shape.out_channels, *([1] * len(shape.size))]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", element, [1, shape.in_channels, *shape.size])],
        [helper.make_tensor_value_info(name, element, ends) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
