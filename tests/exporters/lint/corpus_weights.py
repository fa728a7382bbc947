"""Graphs about weights and biases of Conv, Gemm and MatMul."""

from __future__ import annotations

import numpy as np

from tests.exporters.lint.canvas import Canvas, case


@case("float-weights-fake-quantized")
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.normal(0, 0.1, (16, 16, 3, 3)), np.float32)
    w = g.pair(w, np.full(16, 0.002, np.float32), axis=0)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("weights-per-tensor")
def _(g: Canvas, x: str) -> str:
    w = g.dequantize(g.constant(g.rng.integers(-127, 128, (16, 16, 3, 3)), np.int8))
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("weights-uint8", tensorrt="GRID-UINT8-WEIGHTS GRID-ZERO-POINT", ort="GRID-UINT8-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), g.weights((16, 16, 3, 3), dtype=np.uint8), name="layer"))


@case("weights-uint8-zero-point-0", tensorrt="GRID-UINT8-WEIGHTS", ort="GRID-UINT8-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    w = g.dequantize(g.constant(g.rng.integers(0, 255, (16, 16, 3, 3)), np.uint8), dtype=np.uint8)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("weights-int8-zero-point-3", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    w = g.dequantize(g.constant(g.rng.integers(-127, 128, (16, 16, 3, 3)), np.int8), zero_point=3)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("weights-axis-1", tensorrt="WEIGHT-AXIS", ort="ORT-NOTHING-INTEGER ORT-WEIGHTS WEIGHT-AXIS")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), g.weights((16, 16, 3, 3), axis=1), name="layer"))


@case(
    "weights-axis-1-of-32-by-16",
    tensorrt="WEIGHT-AXIS",
    ort="ORT-NOTHING-INTEGER ORT-WEIGHTS WEIGHT-AXIS",
)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), g.weights((32, 16, 3, 3), axis=1), o=32, name="layer"))


@case(
    "weights-wrong-number-of-scales",
    tensorrt="WEIGHT-SCALES",
    ort="ORT-NOTHING-INTEGER ORT-WEIGHTS WEIGHT-SCALES",
)
def _(g: Canvas, x: str) -> str:
    codes = g.constant(g.rng.integers(-127, 128, (16, 16, 3, 3)), np.int8)
    w = g.dequantize(codes, np.full(8, 0.01, np.float32), axis=0)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("transposed-axis-1", ort="ORT-NO-KERNEL ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    w = g.weights((16, 16, 2, 2), axis=1)
    return g.pair(g.op("ConvTranspose", g.pair(x), w, name="layer", strides=[2, 2]))


@case(
    "transposed-axis-0", tensorrt="WEIGHT-AXIS", ort="ORT-NO-KERNEL ORT-NOTHING-INTEGER WEIGHT-AXIS"
)
def _(g: Canvas, x: str) -> str:
    w = g.weights((16, 16, 2, 2), axis=0)
    return g.pair(g.op("ConvTranspose", g.pair(x), w, name="layer", strides=[2, 2]))


@case("gemm-output-axis")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.gemm(g.pooled(g.pair(x)), name="head"))


@case("gemm-input-axis", tensorrt="WEIGHT-AXIS", ort="ORT-NOTHING-INTEGER ORT-WEIGHTS WEIGHT-AXIS")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.gemm(g.pooled(g.pair(x)), name="head", axis=1))


@case("gemm-float-output", ort="ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return g.gemm(g.pooled(g.pair(x)), name="head")


@case("matmul")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("MatMul", g.pooled(g.pair(x)), g.weights((16, 16), 1), name="head"))


@case("matmul-float-output")
def _(g: Canvas, x: str) -> str:
    return g.op("MatMul", g.pooled(g.pair(x)), g.weights((16, 16), 1), name="head")


@case(
    "matmul-one-side-quantized", tensorrt="WEIGHT-FLOAT", ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER"
)
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.normal(0, 1, (8, 8)), np.float32)
    return g.pair(g.op("MatMul", g.pair(x), w, name="layer"))


@case("bias-int32", tensorrt="WEIGHT-BIAS")
def _(g: Canvas, x: str) -> str:
    bias = g.dequantize(g.constant(np.ones(16), np.int32), np.full(16, 4e-5, np.float32),
                        dtype=np.int32, axis=0)  # fmt: skip
    return g.pair(g.conv(g.pair(x), bias=bias, name="layer"))


@case("bias-int32-without-zero-point", tensorrt="WEIGHT-BIAS")
def _(g: Canvas, x: str) -> str:
    bias = g.dequantize(g.constant(np.ones(16), np.int32), 4e-5, None)
    return g.pair(g.conv(g.pair(x), bias=bias, name="layer"))


@case(
    "bias-int8",
    tensorrt="WEIGHT-BIAS-8-BIT",
    ort="ORT-NOTHING-INTEGER ORT-WEIGHTS WEIGHT-BIAS-8-BIT",
)
def _(g: Canvas, x: str) -> str:
    bias = g.dequantize(g.constant(np.ones(16), np.int8), 4e-5)
    return g.pair(g.conv(g.pair(x), bias=bias, name="layer"))


@case("no-bias")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), bias=None, name="layer"))


@case("weight-scale-zero-in-one-channel", tensorrt="GRID-SCALE", ort="GRID-SCALE")
def _(g: Canvas, x: str) -> str:
    steps = np.full(16, 0.01, np.float32)
    steps[3] = 0
    w = g.dequantize(g.constant(g.rng.integers(-127, 128, (16, 16, 3, 3)), np.int8), steps, axis=0)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("conv-float-weights", tensorrt="WEIGHT-FLOAT")
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.normal(0, 0.1, (16, 16, 3, 3)), np.float32)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("narrow-layers", input=(2, 12, 8, 8))
def _(g: Canvas, x: str) -> str:
    y = g.conv(g.pair(x), g.weights((20, 12, 3, 3)), i=12, o=20, name="layer")
    return g.pair(y)


@case("depthwise")
def _(g: Canvas, x: str) -> str:
    w = g.weights((16, 1, 3, 3))
    return g.pair(g.conv(g.pair(x), w, name="layer", group=16))


@case("one-dimensional-convolution", input=(2, 16, 32))
def _(g: Canvas, x: str) -> str:
    w = g.weights((16, 16, 3))
    return g.pair(g.conv(g.pair(x), w, name="layer", kernel_shape=[3], pads=[1, 1]))


@case("weights-uint8-fake-quantized", tensorrt="GRID-UINT8-WEIGHTS", ort="GRID-UINT8-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.normal(0, 0.1, (16, 16, 3, 3)), np.float32)
    w = g.pair(w, np.full(16, 0.002, np.float32), dtype=np.uint8, axis=0)
    return g.pair(g.conv(g.pair(x), w, name="layer"))


@case("weights-through-transpose")
def _(g: Canvas, x: str) -> str:
    w = g.op("Transpose", g.weights((16, 16, 3, 3)), perm=[0, 1, 3, 2])
    return g.pair(g.conv(g.pair(x), w, name="layer"))
