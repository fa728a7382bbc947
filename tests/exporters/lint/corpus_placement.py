"""Graphs about where Q/DQ pairs stand."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.exporters.lint.canvas import Canvas, case


@case("conv-signed")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), name="layer"))


@case("conv-relu-signed", ort="ORT-NOTHING-INTEGER ORT-RELU-SIGNED")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("Relu", g.conv(g.pair(x), name="layer"), name="relu"))


@case("conv-relu-unsigned", tensorrt="GRID-UINT8-ACTIVATION")
def _(g: Canvas, x: str) -> str:
    y = g.conv(g.pair(x), name="layer")
    return g.pair(g.op("Relu", y, name="relu"), dtype=np.uint8)


@case("conv-relu-lowest-code", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("Relu", g.conv(g.pair(x), name="layer"), name="relu"), zero_point=-128)


@case("batch-norm-after-conv", ort="ORT-BATCH-NORM ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("Relu", g.norm(g.conv(g.pair(x), name="layer")), name="relu"))


@case("batch-norm-after-quantizer", tensorrt="PLACE-BEFORE-ACTIVATION")
def _(g: Canvas, x: str) -> str:
    y = g.norm(g.pair(g.conv(g.pair(x), name="layer")))
    return g.pair(g.op("Relu", y, name="relu"))


@case("pair-between-conv-and-relu", tensorrt="PLACE-BEFORE-ACTIVATION")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("Relu", g.pair(g.conv(g.pair(x), name="layer")), name="relu"))


@case("reduce-mean-head", ort="ORT-NO-KERNEL")
def _(g: Canvas, x: str) -> str:
    axes = g.constant(np.array([2, 3], np.int64))
    x = g.op("ReduceMean", g.pair(x), axes, name="pool", keepdims=0)
    return g.pair(g.gemm(g.pair(x), name="head"))


@case("hard-swish", ort="ORT-NO-KERNEL ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("HardSwish", g.conv(g.pair(x), name="layer"), name="act"))


@case("hard-swish-between-pairs", ort="ORT-NO-KERNEL")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("HardSwish", g.pair(g.conv(g.pair(x), name="layer")), name="act"))


@case("clip-wider-than-the-grid", ort="ORT-CLIP ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    limits = g.constant(0, np.float32), g.constant(6, np.float32)
    return g.pair(g.op("Clip", g.conv(g.pair(x), name="layer"), *limits, name="clip"), 6 / 127)


@case("clip-inside-unsigned-grid", tensorrt="GRID-UINT8-ACTIVATION")
def _(g: Canvas, x: str) -> str:
    limits = g.constant(0, np.float32), g.constant(6, np.float32)
    y = g.op("Clip", g.conv(g.pair(x), name="layer"), *limits, name="clip")
    return g.pair(y, 5.9 / 255, dtype=np.uint8)


@case("residual-both-sides", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    return g.pair(g.op("Add", x, g.pair(g.conv(x, name="branch")), name="join"))


@case(
    "residual-relu-unsigned",
    tensorrt="GRID-UINT8-ACTIVATION",
    ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    y = g.op("Add", x, g.pair(g.conv(x, name="branch")), name="join")
    return g.pair(g.op("Relu", y, name="relu"), dtype=np.uint8)


@case(
    "residual-branch-unquantized",
    tensorrt="PLACE-ADD-ONE-SIDED",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    return g.pair(g.op("Add", x, g.conv(x, name="branch"), name="join"))


@case("residual-shortcut-unquantized", tensorrt="PLACE-ADD-ONE-SIDED", ort="ORT-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    y = g.pair(g.conv(g.pair(x), name="branch"))
    return g.pair(g.op("Add", x, y, name="join"))


@case("concat-one-scale", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    a, b = g.pair(g.conv(x, name="a")), g.pair(g.conv(x, name="b"))
    return g.pair(g.op("Concat", a, b, name="join", axis=1))


@case(
    "concat-two-scales", tensorrt="PLACE-CONCAT-SCALES", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER"
)
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    a, b = g.pair(g.conv(x, name="a")), g.pair(g.conv(x, name="b"), 0.05)
    return g.pair(g.op("Concat", a, b, name="join", axis=1), 0.05)


@case("concat-one-side-float", tensorrt="PLACE-CONCAT-ONE-SIDED", ort="ORT-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    q = g.pair(x)
    a, b = g.pair(g.conv(q, name="a")), g.op("Relu", x, name="loose")
    return g.pair(g.op("Concat", a, b, name="join", axis=1))


@case(
    "codes-as-output",
    tensorrt="PAIR-NO-DEQUANTIZE",
    ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER PAIR-NO-DEQUANTIZE",
    output_type=TensorProto.INT8,
)
def _(g: Canvas, x: str) -> str:
    return g.quantize(g.conv(g.pair(x), name="layer"))


@case(
    "codes-as-input",
    tensorrt="PAIR-NO-QUANTIZE",
    ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER PAIR-NO-QUANTIZE",
    input_type=TensorProto.INT8,
)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.dequantize(x), name="layer"))


@case(
    "codes-computed-on",
    tensorrt="PAIR-CODES-COMPUTED PAIR-NO-QUANTIZE",
    ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER PAIR-CODES-COMPUTED PAIR-NO-QUANTIZE",
)
def _(g: Canvas, x: str) -> str:
    codes = g.quantize(x)
    return g.pair(g.conv(g.dequantize(g.op("Relu", codes, name="relu")), name="layer"))


@case("codes-reshaped", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    codes = g.op("Transpose", g.quantize(x), name="turn", perm=[0, 1, 3, 2])
    return g.pair(g.conv(g.dequantize(codes), name="layer"))


@case(
    "quantizer-without-reader",
    tensorrt="PAIR-NO-DEQUANTIZE PAIR-TWICE",
    ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER PAIR-NO-DEQUANTIZE",
)
def _(g: Canvas, x: str) -> str:
    q = g.pair(x)
    g.quantize(q, name="dangling")
    return g.pair(g.conv(q, name="layer"))


@case("pair-with-two-scales", tensorrt="PAIR-TWO-GRIDS", ort="PAIR-TWO-GRIDS")
def _(g: Canvas, x: str) -> str:
    x = g.dequantize(g.quantize(x, 0.02), 0.08)
    return g.pair(g.conv(x, name="layer"))


@case(
    "pair-with-two-zero-points",
    tensorrt="GRID-ZERO-POINT PAIR-TWO-GRIDS",
    ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER PAIR-TWO-GRIDS",
)
def _(g: Canvas, x: str) -> str:
    x = g.dequantize(g.quantize(x, zero_point=0), zero_point=4)
    return g.pair(g.conv(x, name="layer"))


@case("pair-twice", tensorrt="PAIR-TWICE")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(g.pair(x)), name="layer"))


@case("conv-without-output-pair", ort="ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return g.conv(g.pair(x), name="layer")


@case("conv-read-twice", tensorrt="PLACE-ADD-ONE-SIDED", ort="ORT-INPUT-FLOAT ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    y = g.op("Relu", g.conv(g.pair(x), name="layer"), name="relu")
    return g.pair(g.op("Add", g.pair(g.conv(g.pair(y), name="next")), y, name="join"))


@case(
    "conv-quantized-weights-float-input",
    tensorrt="PLACE-INPUT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(x, name="layer"))


@case("flatten-head", ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    x = g.pair(g.op("GlobalAveragePool", g.pair(x), name="pool"))
    return g.pair(g.gemm(g.op("Flatten", x, name="flatten"), name="head"))


@case(
    "global-pool-unquantized",
    tensorrt="PLACE-INPUT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    x = g.op("GlobalAveragePool", g.pair(x), name="pool")
    return g.gemm(g.op("Flatten", x, name="flatten"), name="head")


@case("max-pool")
def _(g: Canvas, x: str) -> str:
    x = g.op("MaxPool", g.pair(x), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    return g.pair(g.conv(x, name="layer"))


@case("pad-shortcut", ort="ORT-INT8-SHARED ORT-NO-KERNEL ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    pads = g.constant(np.array([0, 0, 0, 0, 0, 16, 0, 0], np.int64))
    x = g.pair(x)
    wide = g.pair(g.op("Pad", x, pads, g.constant(0, np.float32), name="pad"))
    return g.pair(g.op("Add", wide, g.pair(g.conv(x, o=32, name="branch")), name="join"))


@case("sigmoid-gate", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    gate = g.pair(g.op("Sigmoid", g.pair(g.conv(x, name="layer")), name="gate"), 1 / 127)
    return g.pair(g.op("Mul", x, gate, name="scaled"))


@case("softmax-output", ort="ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return g.op("Softmax", g.pair(g.gemm(g.pooled(g.pair(x)), name="head")), name="softmax")


@case(
    "residual-neither-side-quantized",
    tensorrt="PLACE-ADD-UNQUANTIZED",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    y = g.op("Add", g.conv(x, name="a"), g.conv(x, name="b"), name="join")
    return g.pair(y)


@case(
    "attention-one-side-quantized",
    tensorrt="PLACE-MATMUL-ONE-SIDED",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("MatMul", g.pair(x), g.op("Sigmoid", x), name="scores"))


@case("attention-both-sides-quantized", ort="ORT-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("MatMul", g.pair(x), g.pair(g.op("Sigmoid", x)), name="scores"))


@case("bias-is-no-residual", ort="ORT-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    y = g.op("Add", g.pair(x), g.constant(np.ones((16, 1, 1)), np.float32), name="shift")
    return g.pair(y)
