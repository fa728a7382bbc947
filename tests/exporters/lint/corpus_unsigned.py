"""Graphs with uint8 activations, as ONNX Runtime wants them: what fuses there and what does not."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.exporters.lint.canvas import STEP, Canvas, case


def unsigned(g: Canvas, x: str, step: float = STEP, zero_point: int = 128) -> str:
    return g.pair(x, step, zero_point, np.uint8)


@case("unsigned-residual", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(g, g.op("Add", x, unsigned(g, g.conv(x, name="branch")), name="join"))


@case("unsigned-residual-int8-on-branch", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(g, g.op("Add", x, g.pair(g.conv(x, name="branch")), name="join"))


@case("unsigned-out-int8", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return g.pair(g.conv(x, name="layer"))


@case("int8-x-twice-conv", tensorrt="GRID-ZERO-POINT", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    x = g.pair(x)
    return unsigned(
        g,
        g.op(
            "Add", unsigned(g, g.conv(x, name="a")), unsigned(g, g.conv(x, name="b")), name="join"
        ),
    )


@case("unsigned-x-twice-conv", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(
        g,
        g.op(
            "Add", unsigned(g, g.conv(x, name="a")), unsigned(g, g.conv(x, name="b")), name="join"
        ),
    )


@case("concat-unsigned-two-scales", tensorrt="GRID-ZERO-POINT PLACE-CONCAT-SCALES")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(
        g,
        g.op(
            "Concat",
            unsigned(g, g.conv(x, name="a")),
            unsigned(g, g.conv(x, name="b"), step=0.05),
            name="join",
            axis=1,
        ),
    )


@case(
    "concat-one-float-unsigned",
    tensorrt="GRID-ZERO-POINT PLACE-CONCAT-ONE-SIDED",
    ort="ORT-INPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    q = unsigned(g, x)
    return unsigned(
        g, g.op("Concat", unsigned(g, g.conv(q, name="a")), g.op("Relu", x), name="join", axis=1)
    )


@case(
    "gemm-no-zp-weights", tensorrt="GRID-ZERO-POINT", ort="ORT-GEMM-ZERO-POINT ORT-NOTHING-INTEGER"
)
def _(g: Canvas, x: str) -> str:
    x = g.pooled(unsigned(g, x))
    w = g.dequantize(g.constant(g.rng.integers(-127, 128, (16, 16)), np.int8), zero_point=None)
    return unsigned(g, g.op("Gemm", x, w, name="head", transB=1))


@case("gemm-float-weights", tensorrt="GRID-ZERO-POINT WEIGHT-FLOAT")
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.normal(size=(16, 16)), np.float32)
    return unsigned(g, g.op("Gemm", g.pooled(unsigned(g, x)), w, name="head", transB=1))


@case("gemm-pertensor-transb0", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    w = g.dequantize(g.constant(g.rng.integers(-127, 128, (16, 16)), np.int8))
    return unsigned(g, g.op("Gemm", g.pooled(unsigned(g, x)), w, name="head"))


@case("gemm-perchannel-transb0-axis1", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("Gemm", g.pooled(unsigned(g, x)), g.weights((16, 16), 1), name="head"))


@case("gemm-perchannel-transb0-axis0", tensorrt="GRID-ZERO-POINT WEIGHT-AXIS", ort="WEIGHT-AXIS")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("Gemm", g.pooled(unsigned(g, x)), g.weights((16, 16), 0), name="head"))


@case("gemm-alpha", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Gemm",
            g.pooled(unsigned(g, x)),
            g.weights((16, 16), 0),
            name="head",
            transB=1,
            alpha=0.5,
        ),
    )


@case("gemm-beta", tensorrt="GRID-ZERO-POINT", ort="ORT-NOTHING-INTEGER ORT-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Gemm",
            g.pooled(unsigned(g, x)),
            g.weights((16, 16), 0),
            g.constant(np.ones(16), np.float32),
            name="head",
            transB=1,
            beta=0.5,
        ),
    )


@case("gemm-relu", tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("Relu", g.gemm(g.pooled(unsigned(g, x)), name="head")), dtype=np.uint8)


@case(
    "gemm-float-out-unsigned",
    tensorrt="GRID-ZERO-POINT",
    ort="ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    return g.gemm(g.pooled(unsigned(g, x)), name="head")


@case("matmul-axis0", tensorrt="GRID-ZERO-POINT WEIGHT-AXIS", ort="WEIGHT-AXIS")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g, g.op("MatMul", g.pooled(unsigned(g, x)), g.weights((16, 16), 0), name="head")
    )


@case("matmul-act-act", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(g, g.op("MatMul", x, x, name="mm"))


@case("matmul-act-act-int8")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("MatMul", g.pair(x), g.pair(x), name="mm"))


@case("matmul-act-act-float-out", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return g.op("MatMul", x, x, name="mm")


@case("matmul-w-float-out-int8-x")
def _(g: Canvas, x: str) -> str:
    return g.op("MatMul", g.pair(x), g.weights((8, 8), 1), name="mm")


@case(
    "matmul-float-weights",
    tensorrt="GRID-ZERO-POINT WEIGHT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g, g.op("MatMul", unsigned(g, x), g.constant(np.ones((8, 8)), np.float32), name="mm")
    )


@case("conv-then-reshape-then-q", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Reshape", g.conv(unsigned(g, x), name="layer"), g.constant(np.array([2, -1], np.int64))
        ),
    )


@case("conv-then-maxpool-then-q", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("MaxPool", g.conv(unsigned(g, x), name="layer"), kernel_shape=[2, 2]))


@case("conv-relu-maxpool-q", tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return g.pair(
        g.op("MaxPool", g.op("Relu", g.conv(unsigned(g, x), name="layer")), kernel_shape=[2, 2]),
        dtype=np.uint8,
    )


@case("conv-flatten-q", tensorrt="GRID-ZERO-POINT", ort="ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("Flatten", g.conv(unsigned(g, x), name="layer")))


@case("conv-2-qs", tensorrt="GRID-ZERO-POINT", ort="ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    y = g.conv(unsigned(g, x), name="layer")
    return unsigned(g, g.op("Add", unsigned(g, y), unsigned(g, y, step=0.05), name="join"))


@case("conv-q-two-dq-readers-unsigned", tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    y = g.quantize(g.conv(unsigned(g, x), name="layer"), dtype=np.uint8)
    return unsigned(
        g,
        g.op("Add", g.dequantize(y, dtype=np.uint8), g.dequantize(y, dtype=np.uint8), name="join"),
    )


@case("add-const", tensorrt="GRID-ZERO-POINT", ort="ORT-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("Add", unsigned(g, x), g.constant(np.ones(8), np.float32), name="join"))


@case("mul-const-dq", tensorrt="GRID-UINT8-WEIGHTS GRID-ZERO-POINT", ort="GRID-UINT8-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Mul",
            unsigned(g, x),
            g.dequantize(g.constant(np.ones(8), np.uint8), dtype=np.uint8),
            name="join",
        ),
    )


@case("add-same-input-twice", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(g, g.op("Add", x, x, name="join"))


@case("sigmoid", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("Sigmoid", unsigned(g, x), name="s"))


@case("sigmoid-int8")
def _(g: Canvas, x: str) -> str:
    return g.pair(g.op("Sigmoid", g.pair(x), name="s"))


@case("softmax-unsigned", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("Softmax", unsigned(g, x), name="s"))


@case("leaky", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("LeakyRelu", unsigned(g, x), name="s"))


@case("avgpool", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("AveragePool", unsigned(g, x), name="s", kernel_shape=[2, 2]))


@case("avgpool-int8-unsigned", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("AveragePool", g.pair(x), name="s", kernel_shape=[2, 2]))


@case(
    "gap-no-out-q-->-conv",
    tensorrt="GRID-ZERO-POINT PLACE-INPUT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.conv(g.op("GlobalAveragePool", unsigned(g, x), name="s"), name="layer"))


@case(
    "avgpool-noq-then-reshape-conv",
    tensorrt="GRID-ZERO-POINT PLACE-INPUT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER ORT-OUTPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.gemm(g.op("Flatten", g.op("GlobalAveragePool", unsigned(g, x), name="s")), name="layer"),
    )


@case("convt-unsigned", tensorrt="GRID-ZERO-POINT", ort="ORT-NO-KERNEL ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "ConvTranspose",
            unsigned(g, x),
            g.weights((16, 16, 2, 2), 1),
            name="layer",
            strides=[2, 2],
        ),
    )


@case("convt-pertensor", tensorrt="GRID-ZERO-POINT", ort="ORT-NO-KERNEL ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "ConvTranspose",
            unsigned(g, x),
            g.dequantize(g.constant(np.ones((16, 16, 2, 2)), np.int8)),
            name="layer",
            strides=[2, 2],
        ),
    )


@case("resize-unsigned", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Resize", unsigned(g, x), "", g.constant(np.array([1, 1, 2, 2]), np.float32), name="s"
        ),
    )


@case("prelu-between", tensorrt="GRID-ZERO-POINT PLACE-BEFORE-ACTIVATION")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "PRelu",
            unsigned(g, g.conv(unsigned(g, x), name="layer")),
            g.constant(np.full((16, 1, 1), 0.1), np.float32),
            name="act",
        ),
    )


@case("relu-then-clip", tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Clip",
            g.op("Relu", g.conv(unsigned(g, x), name="layer")),
            g.constant(0, np.float32),
            g.constant(6, np.float32),
        ),
        zero_point=0,
        step=5.9 / 255,
    )


@case("instnorm", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "InstanceNormalization",
            unsigned(g, x),
            g.constant(np.ones(16), np.float32),
            g.constant(np.ones(16), np.float32),
            name="n",
        ),
    )


@case("transpose-conv", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.conv(g.op("Transpose", unsigned(g, x), perm=[0, 1, 3, 2]), name="layer"))


@case("slice-conv", tensorrt="GRID-ZERO-POINT PLACE-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    places = [g.constant(np.array([value], np.int64)) for value in (0, 4, 2)]
    return unsigned(g, g.conv(g.op("Slice", unsigned(g, x), *places), name="layer"))


@case(
    "split-conv",
    tensorrt="GRID-ZERO-POINT PLACE-INPUT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    q = unsigned(g, x)
    g.nodes.append(helper.make_node("Split", [q], ["sa", "sb"], "split", axis=1, num_outputs=2))
    return unsigned(g, g.conv("sa", g.weights((16, 8, 3, 3)), name="layer"))


@case(
    "gather-conv",
    tensorrt="GRID-ZERO-POINT PLACE-INPUT-FLOAT",
    ort="ORT-INPUT-FLOAT ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g, g.conv(g.op("Gather", unsigned(g, x), g.constant(np.arange(16)), axis=1), name="layer")
    )


@case("dropoutidentity-conv", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.conv(g.op("Identity", unsigned(g, x)), name="layer"))


@case("bias-computed", tensorrt="GRID-ZERO-POINT", ort="ORT-NOTHING-INTEGER ORT-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    b = g.input("b", TensorProto.FLOAT, [16])
    return unsigned(g, g.conv(unsigned(g, x), bias=b, name="layer"))


@case("weights-from-input", tensorrt="GRID-ZERO-POINT", ort="ORT-NOTHING-INTEGER ORT-WEIGHTS")
def _(g: Canvas, x: str) -> str:
    b = g.input("w", TensorProto.FLOAT, [16, 16, 3, 3])
    return unsigned(g, g.conv(unsigned(g, x), b, name="layer"))


@case(
    "int8-pair-shared-by-conv-and-output",
    tensorrt="PLACE-CONCAT-ONE-SIDED",
    ort="ORT-INPUT-FLOAT ORT-INT8-SHARED ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    y = g.pair(g.conv(g.pair(x), name="layer"))
    return g.op("Concat", y, g.op("Neg", y), axis=0, name="cat")


@case(
    "per-channel-unsigned",
    tensorrt="GRID-PER-CHANNEL-ACTIVATION GRID-UINT8-ACTIVATION GRID-ZERO-POINT",
    ort="ORT-GRID ORT-NOTHING-INTEGER",
)
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g, g.conv(g.pair(x, np.full(16, 0.02, np.float32), axis=1, dtype=np.uint8), name="layer")
    )


@case("unsigned-subtraction", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    x = unsigned(g, x)
    return unsigned(g, g.op("Sub", x, x, name="join"))


@case(
    "relu-conv-float-q-shared-reader",
    tensorrt="GRID-ZERO-POINT PLACE-ADD-ONE-SIDED",
    ort="ORT-INPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    y = g.conv(unsigned(g, x), name="layer")
    q = unsigned(g, y)
    return unsigned(g, g.op("Add", q, g.op("Relu", q), name="join"))


@case("hardsigmoid", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.op("HardSigmoid", unsigned(g, g.conv(unsigned(g, x), name="layer"))))


@case("reducemean-first", tensorrt="GRID-ZERO-POINT", ort="ORT-NO-KERNEL")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "ReduceMean",
            unsigned(g, g.conv(unsigned(g, x), name="layer")),
            g.constant(np.array([2, 3]), np.int64),
            name="m",
        ),
    )


@case("pad-unsigned-same", tensorrt="GRID-ZERO-POINT", ort="ORT-NO-KERNEL")
def _(g: Canvas, x: str) -> str:
    return unsigned(
        g,
        g.op(
            "Pad",
            unsigned(g, g.conv(unsigned(g, x), name="layer")),
            g.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.int64),
            name="m",
        ),
    )


@case(
    "gemm-nonsquare-t0-axis0",
    tensorrt="GRID-ZERO-POINT WEIGHT-AXIS",
    ort="ORT-NOTHING-INTEGER ORT-WEIGHTS WEIGHT-AXIS",
)
def _(g: Canvas, x: str) -> str:
    w = g.dequantize(
        g.constant(g.rng.integers(-127, 128, (16, 24)), np.int8),
        np.full(16, 0.01, np.float32),
        axis=0,
    )
    return unsigned(g, g.op("Gemm", g.pooled(unsigned(g, x)), w, name="head"))


@case("gemm-nonsquare-t0-axis1", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    w = g.dequantize(
        g.constant(g.rng.integers(-127, 128, (16, 24)), np.int8),
        np.full(24, 0.01, np.float32),
        axis=1,
    )
    return unsigned(g, g.op("Gemm", g.pooled(unsigned(g, x)), w, name="head"))


@case("unsigned-q-as-graph-output-and-dq", tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    q = g.quantize(g.conv(unsigned(g, x), name="layer"), dtype=np.uint8)
    return g.dequantize(q, dtype=np.uint8)


@case(
    "unsigned-q-dangling",
    tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT PAIR-NO-DEQUANTIZE PAIR-TWICE",
    ort="PAIR-NO-DEQUANTIZE",
)
def _(g: Canvas, x: str) -> str:
    y = g.pair(g.conv(unsigned(g, x), name="layer"), dtype=np.uint8)
    g.quantize(y, dtype=np.uint8)
    return y


@case(
    "maxpool-2-readers-int8", tensorrt="GRID-ZERO-POINT", ort="ORT-INT8-SHARED ORT-NOTHING-INTEGER"
)
def _(g: Canvas, x: str) -> str:
    y = g.op("MaxPool", g.pair(x), kernel_shape=[2, 2])
    return unsigned(
        g,
        g.op(
            "Add", unsigned(g, g.conv(y, name="a")), unsigned(g, g.conv(y, name="b")), name="join"
        ),
    )


@case("relu-after-add-int8-minus128", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    a = unsigned(g, x)
    return g.pair(
        g.op("Relu", g.op("Add", a, unsigned(g, g.conv(a, name="branch")), name="join")),
        zero_point=-128,
    )


@case("bias-int32-unsigned-acts", tensorrt="GRID-ZERO-POINT WEIGHT-BIAS")
def _(g: Canvas, x: str) -> str:
    b = g.dequantize(
        g.constant(np.ones(16), np.int32), np.full(16, 4e-5, np.float32), dtype=np.int32, axis=0
    )
    return unsigned(g, g.conv(unsigned(g, x), bias=b, name="layer"))


@case("conv-weights-transposed-dq", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    w = g.op("Transpose", g.weights((16, 16, 3, 3)), perm=[0, 1, 3, 2])
    return unsigned(g, g.conv(unsigned(g, x), w, name="layer"))


@case("conv-quant-weights-via-q/dq-with-identity", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    w = g.op("Identity", g.weights((16, 16, 3, 3)))
    return unsigned(g, g.conv(unsigned(g, x), w, name="layer"))


@case("matmul-transposed-weights-dq", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    w = g.op("Transpose", g.weights((16, 16)), perm=[1, 0])
    return unsigned(g, g.op("MatMul", g.pooled(unsigned(g, x)), w, name="head"))


@case("matmul-transposed-weights-codes", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    c = g.op("Transpose", g.constant(g.rng.integers(-127, 128, (16, 16)), np.int8), perm=[1, 0])
    w = g.dequantize(c)
    return unsigned(g, g.op("MatMul", g.pooled(unsigned(g, x)), w, name="head"))


@case("depthwise-unsigned", tensorrt="GRID-ZERO-POINT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.conv(unsigned(g, x), g.weights((16, 1, 3, 3)), name="layer", group=16))


@case("dropout-between", tensorrt="GRID-ZERO-POINT PLACE-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    return unsigned(g, g.conv(g.op("Dropout", unsigned(g, x)), name="layer"))


@case(
    "codes-clipped",
    tensorrt="GRID-UINT8-ACTIVATION GRID-ZERO-POINT PAIR-CODES-COMPUTED PAIR-NO-QUANTIZE",
)
def _(g: Canvas, x: str) -> str:
    """The narrower of two grids, in a graph for ONNX Runtime: codes of a ReLU that end at 127."""
    layer = g.op("Relu", g.conv(unsigned(g, x), name="layer"))
    codes = g.quantize(layer, STEP, 0, np.uint8)
    clipped = g.op("Clip", codes, g.constant(0, np.uint8), g.constant(127, np.uint8), name="end")
    return unsigned(g, g.conv(g.dequantize(clipped, STEP, 0, np.uint8), name="next"))
