"""Graphs that are not as ONNX wants them: cycles, nodes of another opset, sizes and types that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.exporters.lint.canvas import Build, Canvas, case

WIDE = (2, 16, 1, 8)


def one(
    name: str,
    op_type: str,
    *constants: Any,
    outputs: int = 1,
    attributes: dict[str, Any] | None = None,
    **facts: Any,
) -> None:
    """A graph of one node, which reads the input and constants; None is an empty name."""

    @case(name, **facts)
    def _(g: Canvas, x: str) -> str:
        inputs = [x, *("" if value is None else g.constant(value) for value in constants)]
        made = ["y", *(f"other{place}" for place in range(1, outputs))]
        g.nodes.append(helper.make_node(op_type, inputs, made, "odd", **(attributes or {})))
        return "y"


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


SCALAR = np.float32(0.5)
KERNEL = np.full((16, 16, 3, 3), 0.01, np.float32)
ONES = np.ones(16, np.float32)
INPUTS = {"tensorrt": "OP-INPUTS", "ort": "OP-INPUTS", "loads": False}
ATTRIBUTES = {"tensorrt": "OP-ATTRIBUTES", "ort": "OP-ATTRIBUTES", "loads": False}
SIZES = {"tensorrt": "SHAPE-CONTRADICTION", "ort": "SHAPE-CONTRADICTION", "loads": False}
# Read by ONNX Runtime, which then fails in the first call.
LATER = {**SIZES, "loads": True}


# --- files


@case("cycle-of-two", tensorrt="FILE-CYCLE", ort="FILE-CYCLE", loads=False)
def _(g: Canvas, x: str) -> str:
    g.nodes.append(helper.make_node("Relu", ["b"], ["a"], "first"))
    g.nodes.append(helper.make_node("Relu", ["a"], ["b"], "second"))
    return "b"


@case("cycle-of-one", tensorrt="FILE-CYCLE", ort="FILE-CYCLE", loads=False)
def _(g: Canvas, x: str) -> str:
    g.nodes.append(helper.make_node("Add", [x, "a"], ["a"], "first"))
    return "a"


@case("cycle-that-nobody-reads", tensorrt="FILE-CYCLE", ort="FILE-CYCLE", loads=False)
def _(g: Canvas, x: str) -> str:
    shape = g.constant(i64(2, -1))
    g.nodes.append(helper.make_node("Reshape", ["b", shape], ["a"], "first"))
    g.nodes.append(helper.make_node("Reshape", ["a", shape], ["b"], "second"))
    return g.pair(g.conv(g.pair(x), name="layer"))


def _branches(g: Canvas, x: str, nodes: list[onnx.NodeProto], last: str) -> str:
    condition = g.op("Greater", g.op("ReduceMax", x, keepdims=0), g.constant(0, np.float32))
    graphs = []
    for name, inside, out in (
        ("then", nodes, last),
        ("else", [helper.make_node("Neg", [x], ["negative"], "negate")], "negative"),
    ):
        made = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        graphs.append(helper.make_graph(inside, name, [], [made]))
    return g.op("If", condition, name="choose", then_branch=graphs[0], else_branch=graphs[1])


@case(
    "cycle-in-a-branch",
    tensorrt="FILE-CYCLE OP-CONTROL-FLOW",
    ort="FILE-CYCLE OP-CONTROL-FLOW",
    loads=False,
)
def _(g: Canvas, x: str) -> str:
    nodes = [helper.make_node("Add", [x, "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return _branches(g, x, nodes, "a")


@case(
    "cycle-through-a-branch",
    tensorrt="FILE-CYCLE OP-CONTROL-FLOW",
    ort="FILE-CYCLE OP-CONTROL-FLOW",
    loads=False,
)
def _(g: Canvas, x: str) -> str:
    chosen = _branches(g, x, [helper.make_node("Relu", ["y"], ["a"])], "a")
    g.nodes.append(helper.make_node("Abs", [chosen], ["y"], "last"))
    return "y"


@case(
    "branch-reads-what-nobody-makes",
    tensorrt="FILE-BROKEN OP-CONTROL-FLOW",
    ort="FILE-BROKEN OP-CONTROL-FLOW",
    loads=False,
)
def _(g: Canvas, x: str) -> str:
    return _branches(g, x, [helper.make_node("Relu", ["nowhere"], ["a"])], "a")


@case(
    "branch-with-an-unknown-attribute",
    tensorrt="OP-ATTRIBUTES OP-CONTROL-FLOW",
    ort="OP-ATTRIBUTES OP-CONTROL-FLOW",
    loads=False,
)
def _(g: Canvas, x: str) -> str:
    return _branches(g, x, [helper.make_node("Relu", [x], ["a"], "odd", slope=1)], "a")


@case("two-nodes-of-one-name", ort="FILE-NAMES", loads=False)
def _(g: Canvas, x: str) -> str:
    g.nodes.append(helper.make_node("Relu", [x], ["a"], "same"))
    g.nodes.append(helper.make_node("Abs", ["a"], ["b"], "same"))
    return "b"


def _relu(g: Canvas, x: str) -> str:
    g.nodes.append(helper.make_node("Relu", [x], ["y"], "relu"))
    return "y"


def _add(g: Canvas, x: str) -> str:
    return g.op("Add", x, g.constant(f32(1)), name="join")


def edited(name: str, edit: Any, build: Build = _relu, **facts: Any) -> None:
    case(name, edit=edit, **facts)(build)


BROKEN = {"tensorrt": "FILE-BROKEN", "ort": "FILE-BROKEN"}
edited("input-there-twice", lambda m: m.graph.input.append(m.graph.input[0]), **BROKEN, loads=False)
edited("output-there-twice", lambda m: m.graph.output.append(m.graph.output[0]))
edited(
    "initializer-there-twice",
    lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    _add,
    **BROKEN,
)
edited("no-output", lambda m: m.graph.ClearField("output"), **BROKEN)
edited("output-without-a-type", lambda m: None, **BROKEN, output_type=0, loads=False)
edited("input-is-an-output", lambda m: setattr(m.graph.output[0], "name", "x"))
OLD = {"opset": 6, "tensorrt": "FILE-OPSET", "ort": "FILE-OPSET"}
edited("opset-6", lambda m: None, **OLD)
edited("opset-6-and-add", lambda m: None, _add, **OLD, loads=False)
edited(
    "no-file-format",
    lambda m: m.ClearField("ir_version"),
    ort="FILE-IR-VERSION",
    loads=False,
)


# --- inputs without a shape


def _shapeless(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.tensor_type.ClearField("shape")


edited("no-shape-and-relu", _shapeless, tensorrt="SHAPE-MISSING")
for op_type, values, given in (
    ("Conv", [KERNEL], {}),
    ("BatchNormalization", [ONES] * 4, {}),
    ("GlobalAveragePool", [], {}),
    ("MaxPool", [], {"kernel_shape": [2, 2]}),
    ("Softmax", [], {}),
    ("Flatten", [], {}),
    ("ReduceMean", [], {}),
    ("Reshape", [i64(2, -1)], {}),
    ("MatMul", [np.ones((8, 8), np.float32)], {}),
):
    one(
        f"no-shape-and-{op_type}",
        op_type,
        *values,
        attributes=given,
        edit=_shapeless,
        tensorrt="SHAPE-MISSING",
    )


# --- inputs and outputs of other opsets

one("relu-of-two", "Relu", SCALAR, **INPUTS)
one("relu-with-two-outputs", "Relu", outputs=2, **INPUTS)
one("relu-and-an-empty-name", "Relu", None, **INPUTS)
one("add-of-one", "Add", None, **INPUTS)
one("clip-limits-as-inputs-before-11", "Clip", SCALAR, SCALAR, opset=10, **INPUTS)
one("clip-of-four", "Clip", SCALAR, SCALAR, SCALAR, **INPUTS)
one("clip-of-empty-names", "Clip", None, None, None, **INPUTS)
one("squeeze-axes-as-input-before-13", "Squeeze", i64(2), opset=11, input=WIDE, **INPUTS)
one("squeeze-axes-as-input", "Squeeze", i64(2), opset=13, input=WIDE)
one("unsqueeze-axes-as-input", "Unsqueeze", i64(2), opset=13)
one("mean-axes-as-input-before-18", "ReduceMean", i64(2, 3), opset=17, **INPUTS)
one("mean-axes-as-input", "ReduceMean", i64(2, 3), opset=18)
one("sum-axes-as-input-before-13", "ReduceSum", i64(2, 3), opset=12, **INPUTS)
one("sum-axes-as-input", "ReduceSum", i64(2, 3), opset=13)
one("pad-as-input", "Pad", i64(0, 0, 1, 1, 0, 0, 1, 1), opset=11)
one("dropout-ratio-as-input-before-12", "Dropout", SCALAR, opset=11, **INPUTS)
one("dropout-ratio-as-input", "Dropout", SCALAR, opset=12)
one("gemm-without-bias-before-11", "Gemm", np.ones((8, 4), np.float32), input=(2, 8), opset=10,
    **INPUTS)  # fmt: skip
one("gemm-without-bias", "Gemm", np.ones((8, 4), np.float32), input=(2, 8), opset=11)
one("conv-of-four", "Conv", KERNEL, ONES, ONES, **INPUTS)
one("resize-without-roi", "Resize", None, f32(1, 1, 2, 2), opset=13)
one("resize-without-roi-before-11", "Resize", None, f32(1, 1, 2, 2), opset=10, **INPUTS)
one("resize-as-in-10", "Resize", f32(1, 1, 2, 2), opset=10)
one("resize-as-in-10-later", "Resize", f32(1, 1, 2, 2), opset=13, **SIZES)
one("resize-without-scales", "Resize", opset=13, **SIZES)
one(
    "split-sizes-as-input-before-13",
    "Split",
    i64(8, 8),
    outputs=2,
    attributes={"axis": 1},
    opset=11,
    **INPUTS,
)
one("split-into-nothing-said", "Split", outputs=2, attributes={"axis": 1}, **SIZES)

# --- attributes of other opsets

one("clip-limits-as-attributes", "Clip", opset=10, attributes={"min": 0.0, "max": 6.0})
one("clip-limits-as-attributes-later", "Clip", opset=13, attributes={"min": 0.0}, **ATTRIBUTES)
one("squeeze-axes-as-attribute", "Squeeze", opset=11, attributes={"axes": [2]}, input=WIDE)
one(
    "squeeze-axes-as-attribute-later",
    "Squeeze",
    opset=13,
    attributes={"axes": [2]},
    input=WIDE,
    **ATTRIBUTES,
)
one("unsqueeze-axes-as-attribute", "Unsqueeze", opset=11, attributes={"axes": [2]})
one(
    "unsqueeze-axes-as-attribute-later",
    "Unsqueeze",
    opset=13,
    attributes={"axes": [2]},
    tensorrt="OP-ATTRIBUTES OP-INPUTS",
    ort="OP-ATTRIBUTES OP-INPUTS",
    loads=False,
)
one(
    "unsqueeze-axes-as-input-before-13",
    "Unsqueeze",
    i64(2),
    opset=11,
    tensorrt="OP-ATTRIBUTES OP-INPUTS",
    ort="OP-ATTRIBUTES OP-INPUTS",
    loads=False,
)
one("mean-axes-as-attribute", "ReduceMean", opset=17, attributes={"axes": [2, 3]})
one("mean-axes-as-attribute-later", "ReduceMean", opset=18, attributes={"axes": [2]}, **ATTRIBUTES)
one("pad-as-attribute", "Pad", opset=10, attributes={"pads": [0, 0, 1, 1, 0, 0, 1, 1]})
one("slice-as-attributes", "Slice", opset=9, attributes={"starts": [0], "ends": [4]})
one("upsample-as-attribute", "Upsample", opset=7, attributes={"scales": [1.0, 1.0, 2.0, 2.0]},
    tensorrt="FILE-OPSET")  # fmt: skip
one(
    "upsample-after-its-end",
    "Upsample",
    f32(1, 1, 2, 2),
    opset=10,
    tensorrt="OP-UNKNOWN",
    ort="OP-UNKNOWN",
    loads=False,
)
one("dropout-ratio-as-attribute", "Dropout", opset=11, attributes={"ratio": 0.5})
one("dropout-ratio-as-attribute-later", "Dropout", opset=13, attributes={"ratio": 0.5},
    **ATTRIBUTES)  # fmt: skip
one("norm-mode-before-14", "BatchNormalization", *[ONES] * 4, opset=13,
    attributes={"training_mode": 0}, **ATTRIBUTES)  # fmt: skip
one("norm-mode", "BatchNormalization", *[ONES] * 4, opset=14, attributes={"training_mode": 0})
one("reshape-zeros-before-14", "Reshape", i64(2, -1), opset=13, attributes={"allowzero": 0},
    **ATTRIBUTES)  # fmt: skip
one("softmax-axis-as-float", "Softmax", attributes={"axis": 1.0}, **ATTRIBUTES)
one("softmax-axis-as-list", "Softmax", attributes={"axis": [1]}, **ATTRIBUTES)
one("leaky-slope-as-text", "LeakyRelu", attributes={"alpha": "steep"}, **ATTRIBUTES)
one("relu-with-an-attribute", "Relu", attributes={"slope": 1}, **ATTRIBUTES)
one("conv-kernel-as-floats", "Conv", KERNEL, attributes={"kernel_shape": [3.0, 3.0]}, **ATTRIBUTES)
one("conv-pads-as-number", "Conv", KERNEL, attributes={"pads": 1}, **ATTRIBUTES)
one("conv-pads-as-no-word", "Conv", KERNEL, attributes={"auto_pad": "SOMETIMES"}, **ATTRIBUTES)
one("max-pool-without-kernel", "MaxPool", opset=12, **ATTRIBUTES)
one("average-with-dilations-before-19", "AveragePool", opset=18,
    attributes={"kernel_shape": [2, 2], "dilations": [1, 1]}, **ATTRIBUTES)  # fmt: skip
one("cast-to-nothing", "Cast", **ATTRIBUTES)
one("resize-in-no-mode", "Resize", None, f32(1, 1, 2, 2), attributes={"mode": "blurry"},
    **ATTRIBUTES)  # fmt: skip
one("layer-norm-before-17", "LayerNormalization", np.ones(8, np.float32), opset=16,
    tensorrt="OP-UNKNOWN", ort="OP-UNKNOWN")  # fmt: skip


def _constant(name: str, attributes: dict[str, Any], **facts: Any) -> None:
    @case(name, **facts)
    def _(g: Canvas, x: str) -> str:
        g.nodes.append(helper.make_node("Constant", [], ["c"], "constant", **attributes))
        return g.op("Add", x, "c", name="join")


_constant("constant-float", {"value_float": 1.0}, opset=12)
_constant("constant-float-before-12", {"value_float": 1.0}, opset=11, tensorrt="OP-ATTRIBUTES")
_constant("constant-of-nothing", {}, **ATTRIBUTES)

# --- forms that one of the targets does not take

one("max-pool-with-indices", "MaxPool", outputs=2, attributes={"kernel_shape": [2, 2]},
    tensorrt="OP-FORM")  # fmt: skip
one("resize-with-antialias", "Resize", None, f32(1, 1, 2, 2),
    attributes={"mode": "linear", "antialias": 1}, tensorrt="OP-FORM")  # fmt: skip
one("conv-with-an-empty-bias", "Conv", KERNEL, None, tensorrt="OP-FORM")
one("squeeze-with-empty-axes", "Squeeze", None, input=WIDE, tensorrt="OP-FORM")

# --- sizes and types

one("softmax-axis-beyond", "Softmax", attributes={"axis": 9}, **SIZES)
one("flatten-axis-beyond", "Flatten", attributes={"axis": 9}, **SIZES)
one("squeeze-of-sixteen", "Squeeze", i64(1), **SIZES)
one("transpose-axis-twice", "Transpose", attributes={"perm": [0, 0, 1, 2]}, **SIZES)
one("expand-to-other-sizes", "Expand", i64(3, 3), **SIZES)
one("strides-of-zero", "MaxPool", attributes={"kernel_shape": [2, 2], "strides": [0, 0]}, **SIZES)
one("conv-pads-of-one-side", "Conv", KERNEL, attributes={"pads": [1, 1]}, **SIZES)
one("conv-with-another-kernel", "Conv", KERNEL, attributes={"kernel_shape": [5, 5]}, **LATER)
one("conv-with-other-groups", "Conv", KERNEL, attributes={"group": 4}, **LATER)
one("conv-with-another-bias", "Conv", KERNEL, np.ones(7, np.float32), **LATER)
one("reshape-to-other-sizes", "Reshape", i64(3, 5), **LATER)
one("slopes-of-other-channels", "PRelu", np.ones((7, 1, 1), np.float32), **LATER)
one("blocks-that-do-not-divide", "DepthToSpace", attributes={"blocksize": 3}, **LATER)
one("window-beyond-the-image", "AveragePool", attributes={"kernel_shape": [20, 20]},
    tensorrt="SHAPE-EMPTY", ort="SHAPE-EMPTY")  # fmt: skip
one("float-and-int64", "Add", np.int64(1), tensorrt="TYPE-CONFLICT", ort="TYPE-CONFLICT",
    loads=False)  # fmt: skip
one(
    "relu-of-int64-before-14",
    "Relu",
    opset=13,
    input_type=TensorProto.INT64,
    output_type=TensorProto.INT64,
    tensorrt="TYPE-CONFLICT",
    ort="TYPE-CONFLICT",
    loads=False,
)
one("output-of-another-type", "Relu", output_type=TensorProto.INT32, tensorrt="TYPE-CONFLICT",
    ort="TYPE-CONFLICT", loads=False)  # fmt: skip
one("sigmoid-of-int32", "Sigmoid", input_type=TensorProto.INT32, output_type=TensorProto.INT32,
    tensorrt="TYPE-CONFLICT", ort="TYPE-CONFLICT", loads=False)  # fmt: skip
one("relu-of-int32", "Relu", input_type=TensorProto.INT32, output_type=TensorProto.INT32,
    tensorrt="TYPE-CONFLICT")  # fmt: skip


@case(
    "codes-of-another-type",
    tensorrt="GRID-UINT8-ACTIVATION PAIR-TWO-GRIDS",
    ort="TYPE-CONFLICT PAIR-TWO-GRIDS",
    loads=False,
)
def _(g: Canvas, x: str) -> str:
    return g.dequantize(g.quantize(x, zero_point=None))


@case("more-zero-points-than-scales", tensorrt="WEIGHT-SCALES", ort="WEIGHT-SCALES")
def _(g: Canvas, x: str) -> str:
    codes = g.quantize(x)
    grid = g.constant(np.float32(0.02)), g.constant(np.zeros(2, np.int8))
    return g.op("DequantizeLinear", codes, *grid)


one("dropout-mode-before-12", "Dropout", SCALAR, np.array(True), opset=11, **INPUTS)

FAIL_IN_THE_FIRST_CALL = (
    "blocks-that-do-not-divide",
    "more-zero-points-than-scales",
    "conv-with-another-bias",
    "conv-with-another-kernel",
    "conv-with-other-groups",
    "reshape-to-other-sizes",
    "slopes-of-other-channels",
    "window-beyond-the-image",
)
