"""Graphs about operators, types, shapes and opsets."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.exporters.lint.canvas import STEP, Canvas, case


@case("float-network")
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.normal(0, 0.1, (16, 16, 3, 3)), np.float32)
    return g.op("Relu", g.conv(x, w, name="layer"), name="relu")


@case("dynamic-batch", input=("batch", 16, 8, 8))
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), name="layer"))


@case("dynamic-image", tensorrt="SHAPE-DYNAMIC", input=(1, 16, "height", "width"))
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), name="layer"))


@case("zero-batch", tensorrt="SHAPE-EMPTY", ort="SHAPE-EMPTY", input=(0, 16, 8, 8))
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(x), name="layer"))


@case("empty-weights", ort="ORT-INPUT-FLOAT")
def _(g: Canvas, x: str) -> str:
    empty = g.constant(np.zeros((2, 0, 8, 8)), np.float32)
    return g.op("Concat", g.pair(g.conv(g.pair(x), name="layer")), empty, name="join", axis=1)


@case("unknown-operator", tensorrt="OP-UNKNOWN", ort="OP-UNKNOWN")
def _(g: Canvas, x: str) -> str:
    return g.op("Frobnicate", g.pair(x), name="odd")


@case("custom-operator", tensorrt="OP-CUSTOM", ort="OP-CUSTOM")
def _(g: Canvas, x: str) -> str:
    return g.op("Frobnicate", g.pair(x), name="odd", domain="my.company")


@case("contrib-operator", tensorrt="OP-CUSTOM")
def _(g: Canvas, x: str) -> str:
    return g.op("Gelu", g.pair(x), name="act", domain="com.microsoft")


@case(
    "integer-operators",
    tensorrt="GRID-UINT8-ACTIVATION OP-UNSUPPORTED",
    output_type=TensorProto.INT32,
)
def _(g: Canvas, x: str) -> str:
    w = g.constant(g.rng.integers(-127, 128, (16, 16, 3, 3)), np.int8)
    return g.op("ConvInteger", g.quantize(x, dtype=np.uint8), w, name="layer", kernel_shape=[3, 3])


@case("dynamic-quantization", tensorrt="OP-UNSUPPORTED", ort="ORT-GRID ORT-NOTHING-INTEGER")
def _(g: Canvas, x: str) -> str:
    node = helper.make_node("DynamicQuantizeLinear", [x], ["codes", "step", "zero"], "dynamic")
    g.nodes.append(node)
    return g.pair(g.conv(g.op("DequantizeLinear", "codes", "step", "zero"), name="layer"))


@case("unsupported-standard-operator", tensorrt="OP-UNSUPPORTED")
def _(g: Canvas, x: str) -> str:
    return g.op("Det", g.pair(x), name="det")


@case("non-zero", tensorrt="OP-PLUGIN", output_type=TensorProto.INT64)
def _(g: Canvas, x: str) -> str:
    return g.op("NonZero", g.pair(x), name="where")


@case("control-flow-if", tensorrt="OP-CONTROL-FLOW", ort="OP-CONTROL-FLOW")
def _(g: Canvas, x: str) -> str:
    condition = g.op("Greater", g.op("ReduceMax", x, keepdims=0), g.constant(0, np.float32))
    q = g.pair(x)
    y = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Relu", [q], ["branch"])], "then", [], [y])
    other = onnx.GraphProto()
    other.CopyFrom(then)
    other.node[0].op_type = "Neg"
    other.name = "otherwise"
    other.node[0].output[0] = other.output[0].name = "other_branch"
    return g.op("If", condition, name="choose", then_branch=then, else_branch=other)


@case("control-flow-loop", tensorrt="OP-CONTROL-FLOW", ort="OP-CONTROL-FLOW")
def _(g: Canvas, x: str) -> str:
    i = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    more = helper.make_tensor_value_info("more", TensorProto.BOOL, [])
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 16, 8, 8])
    after = helper.make_tensor_value_info("after", TensorProto.FLOAT, [2, 16, 8, 8])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["more"]), helper.make_node("Relu", ["state"], ["after"])],
        "body", [i, go, state], [more, after],
    )  # fmt: skip
    trips, true = g.constant(3, np.int64), g.constant(True, np.bool_)
    return g.op("Loop", trips, true, g.pair(x), name="repeat", body=body)


@case(
    "double",
    tensorrt="TYPE-DOUBLE",
    ort="TYPE-DOUBLE",
    input_type=TensorProto.DOUBLE,
    output_type=TensorProto.DOUBLE,
)
def _(g: Canvas, x: str) -> str:
    return g.op("Relu", x, name="relu")


@case("int64-input", output_type=TensorProto.FLOAT)
def _(g: Canvas, x: str) -> str:
    index = g.input("index", TensorProto.INT64, [2])
    return g.op("Gather", g.pair(g.conv(g.pair(x), name="layer")), index, name="pick", axis=1)


@case(
    "string-input",
    tensorrt="TYPE-UNSUPPORTED",
    input_type=TensorProto.STRING,
    output_type=TensorProto.STRING,
)
def _(g: Canvas, x: str) -> str:
    return g.op("Identity", x, name="same")


def _opset(opset: int, **expected: str) -> None:
    @case(f"opset-{opset}", opset=opset, **expected)
    def _(g: Canvas, x: str) -> str:
        return g.pair(x) if opset >= 10 else g.op("Relu", x)


_opset(7, tensorrt="FILE-OPSET")
_opset(8, tensorrt="FILE-OPSET")
_opset(9)
_opset(10)
_opset(11)
_opset(12)
_opset(13)
_opset(17)
_opset(19)
_opset(20)
_opset(22)
_opset(24)
_opset(25)
_opset(26, tensorrt="FILE-OPSET")
_opset(27, tensorrt="FILE-OPSET", ort="FILE-OPSET")


@case(
    "operator-newer-than-the-opset", tensorrt="OP-UNKNOWN", ort="OP-UNKNOWN ORT-NO-KERNEL", opset=13
)
def _(g: Canvas, x: str) -> str:
    return g.op("HardSwish", g.pair(x), name="act")


@case("custom-operator-with-a-standard-name", tensorrt="OP-CUSTOM", ort="OP-CUSTOM")
def _(g: Canvas, x: str) -> str:
    return g.op("Relu", g.pair(x), name="odd", domain="my.company")


@case("contrib-operator-without-importer", tensorrt="OP-CUSTOM")
def _(g: Canvas, x: str) -> str:
    return g.op("FastGelu", g.pair(x), name="act", domain="com.microsoft")


@case("contrib-quantizers", tensorrt="OP-CUSTOM")
def _(g: Canvas, x: str) -> str:
    grid = g.constant(STEP, np.float32), g.constant(0, np.int8)
    codes = g.op("QuantizeLinear", x, *grid, domain="com.microsoft")
    x = g.op("DequantizeLinear", codes, *grid, domain="com.microsoft")
    return g.pair(g.conv(x, name="layer"))


@case("int16-initializer", tensorrt="TYPE-UNSUPPORTED")
def _(g: Canvas, x: str) -> str:
    g.constant([1, 2], np.int16)
    return g.pair(g.conv(g.pair(x), name="layer"))


@case("cast-to-uint32", tensorrt="TYPE-UNSUPPORTED", output_type=TensorProto.UINT32)
def _(g: Canvas, x: str) -> str:
    return g.op("Cast", g.pair(x), name="cast", to=TensorProto.UINT32)


@case("cast-to-uint8-inside", tensorrt="TYPE-UINT8-INSIDE")
def _(g: Canvas, x: str) -> str:
    return g.op("Cast", g.op("Cast", x, name="bytes", to=TensorProto.UINT8), to=TensorProto.FLOAT)


@case("cast-to-uint8-at-the-end", output_type=TensorProto.UINT8)
def _(g: Canvas, x: str) -> str:
    return g.op("Cast", g.pair(x), name="bytes", to=TensorProto.UINT8)


@case("image-of-bytes", input_type=TensorProto.UINT8)
def _(g: Canvas, x: str) -> str:
    return g.pair(g.conv(g.pair(g.op("Cast", x, to=TensorProto.FLOAT)), name="layer"))


@case("dropout-in-training-mode", tensorrt="OP-TRAINING", ort="OP-TRAINING")
def _(g: Canvas, x: str) -> str:
    return g.op("Dropout", g.pair(x), g.constant(0.5, np.float32), g.constant(True, np.bool_))


@case("batch-norm-in-training-mode", tensorrt="OP-TRAINING", ort="OP-TRAINING")
def _(g: Canvas, x: str) -> str:
    ones = [g.constant(np.ones(16), np.float32) for _ in range(4)]
    outputs = ["norm_out", "mean_out", "variance_out"]
    g.nodes.append(
        helper.make_node("BatchNormalization", [g.pair(x), *ones], outputs, "norm", training_mode=1)
    )
    return "norm_out"


@case(
    "input-that-nobody-makes",
    tensorrt="FILE-BROKEN PLACE-ADD-ONE-SIDED",
    ort="FILE-BROKEN ORT-INPUT-FLOAT",
)
def _(g: Canvas, x: str) -> str:
    return g.op("Add", g.pair(x), "nowhere", name="join")


@case("value-made-twice", tensorrt="FILE-BROKEN", ort="FILE-BROKEN")
def _(g: Canvas, x: str) -> str:
    g.nodes.append(helper.make_node("Relu", [x], ["twice"], "first"))
    g.nodes.append(helper.make_node("Abs", [x], ["twice"], "second"))
    return g.pair("twice")


@case("nodes-out-of-order", tensorrt="FILE-ORDER", ort="FILE-ORDER")
def _(g: Canvas, x: str) -> str:
    g.nodes.append(helper.make_node("Relu", ["late"], ["early"], "first"))
    g.nodes.append(helper.make_node("Abs", [x], ["late"], "second"))
    return "early"


@case(
    "shapes-that-do-not-fit",
    tensorrt="SHAPE-CONTRADICTION",
    ort="ORT-INPUT-FLOAT SHAPE-CONTRADICTION",
)
def _(g: Canvas, x: str) -> str:
    return g.op("Add", g.pair(x), g.constant(np.ones((3, 3, 3)), np.float32), name="join")
