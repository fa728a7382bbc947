"""Graphs about one quantizer: zero points, types of codes, scales."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.exporters.lint.canvas import STEP, Canvas, case


def _half(g: Canvas, x: str) -> str:
    step = np.full((), STEP, np.float16)
    w = g.dequantize(g.constant(g.rng.integers(-127, 128, (16, 16, 3, 3)), np.int8),
                     np.full(16, 0.01, np.float16), axis=0)  # fmt: skip
    bias = g.constant(np.zeros(16), np.float16)
    return g.pair(g.conv(g.pair(x, step), w, bias, name="layer"), step)


HALF = {"input_type": TensorProto.FLOAT16, "output_type": TensorProto.FLOAT16}
case("half-scales-opset-21", opset=21, **HALF, ort="ORT-GRID ORT-NOTHING-INTEGER")(_half)
case(
    "half-scales-opset-18",
    opset=18,
    **HALF,
    tensorrt="TYPE-HALF-SCALE",
    ort="ORT-GRID ORT-NOTHING-INTEGER TYPE-HALF-SCALE TYPE-MIXED-QUANTIZER",
)(_half)


@case("uint8-zero-point-128", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, zero_point=128, dtype=np.uint8), name="layer"))


@case("no-zero-point-input", tensorrt="GRID-UINT8-ACTIVATION")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, zero_point=None), name="layer"), zero_point=None)


@case("zero-point-through-identity")
def _(g: Canvas, x: str) -> str:
    zero = g.op("Identity", g.constant(0, np.int8))
    step = g.op("Identity", g.constant(STEP, np.float32))
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    return g.pair(g.conv(x, name="layer"))


@case("zero-point-through-cast")
def _(g: Canvas, x: str) -> str:
    zero = g.op("Cast", g.constant(0, np.int32), to=TensorProto.INT8)
    step = g.constant(STEP, np.float32)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    return g.pair(g.conv(x, name="layer"))


@case("scale-zero", tensorrt="GRID-SCALE", ort="GRID-SCALE")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, 0.0), name="layer"))


@case("scale-negative", tensorrt="GRID-SCALE", ort="GRID-SCALE")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, -0.1), name="layer"))


@case("scale-nan", tensorrt="GRID-SCALE", ort="GRID-SCALE ORT-GRID ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, np.nan), name="layer"))


@case("scale-infinite", tensorrt="GRID-SCALE", ort="GRID-SCALE ORT-GRID ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, np.inf), name="layer"))


@case("scale-subnormal")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, 1e-40), name="layer"))


@case("scale-from-an-input", tensorrt="GRID-SCALE-NOT-CONSTANT", ort="ORT-GRID ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    step, zero = g.input("step"), g.constant(0, np.int8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    return g.pair(g.conv(x, name="layer"))


@case("scale-computed-from-constants")
def _(g: Canvas, x: str) -> str:
    step = g.op("Mul", g.constant(0.1, np.float32), g.constant(0.2, np.float32))
    zero = g.constant(0, np.int8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    return g.pair(g.conv(x, name="layer"))


@case(
    "scale-computed-from-the-data",
    tensorrt="GRID-SCALE-NOT-CONSTANT",
    ort="ORT-GRID ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    step = g.op("ReduceMax", g.op("Abs", x), keepdims=0)
    zero = g.constant(0, np.int8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    return g.pair(g.conv(x, name="layer"))


@case(
    "zero-point-from-an-input",
    tensorrt="GRID-ZERO-POINT-NOT-CONSTANT",
    ort="ORT-GRID ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    step, zero = g.constant(STEP, np.float32), g.input("zero", TensorProto.INT8)
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    return g.pair(g.conv(x, name="layer"))


@case(
    "activation-per-channel",
    tensorrt="GRID-PER-CHANNEL-ACTIVATION",
    ort="ORT-GRID ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, np.full(16, STEP, np.float32), axis=1), name="layer"))


@case("scalar-input", tensorrt="GRID-SCALAR", input=())
def _(g: Canvas, x: str) -> str:
    return g.pair(x)


@case("int16-activations", tensorrt="GRID-CODES", ort="ORT-GRID ORT-NOTHING-INTEGER", opset=21)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x, dtype=np.int16), name="layer"))


@case(
    "blocked-activations",
    tensorrt="GRID-BLOCKED-ACTIVATION",
    ort="ORT-GRID ORT-NOTHING-INTEGER",
    opset=21,
)
def _(g: Canvas, x: str) -> str:
    step = np.full((2, 4, 8, 8), STEP, np.float32)
    return g.pair(g.conv(g.pair(x, step, axis=1, block_size=4), name="layer"))


@case("half-network-float-leftover", ort="ORT-GRID ORT-NOTHING-INTEGER", opset=19, **HALF)
def _(g: Canvas, x: str) -> str:
    y = g.op("Cast", _half(g, x), to=TensorProto.FLOAT)
    y = g.op("Sigmoid", y, name="leftover")
    return g.op("Cast", y, to=TensorProto.FLOAT16)


@case("half-input-float-scale", ort="TYPE-MIXED-QUANTIZER", opset=19, **HALF)
def _(g: Canvas, x: str) -> str:
    return g.op("Cast", g.pair(x), to=TensorProto.FLOAT16)
