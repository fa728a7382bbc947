"""Rules about Q and DQ as a pair: one without the other, two grids, twice, on codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, is_standard, label

if TYPE_CHECKING:
    from onnx import NodeProto

# Operators that may stand between a Q and its DQ: they move codes and compute nothing.
_MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})


@rule(
    "PAIR-NO-DEQUANTIZE",
    title="codes that leave the graph or are never read",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""A Q without a DQ behind it hands out integers. As an output of the graph that
    is legal and changes what the caller gets: codes, without their scale. Without any reader it is
    dead weight, and a sign that a pass took the DQ away. ONNX Runtime 1.31.1 fuses the layer before
    an int8 Q only when a DQ follows.""",
    remedy="put a DequantizeLinear of the same grid behind it, or take the QuantizeLinear out",
)
def no_dequantize(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        value = node.output[0]
        if view.is_output(value):
            yield Hit(label(node), f"the codes {value!r} are an output of the graph")
        elif not view.readers(value):
            yield Hit(label(node), f"nothing reads the codes {value!r}")


def _keeps_codes(node: NodeProto, target: LintTarget) -> bool:
    """Whether the codes that leave ``node`` mean what those that enter it do."""
    return node.op_type in _MOVES or (node.op_type == "Clip" and not target.is_tensorrt)


@rule(
    "PAIR-NO-QUANTIZE",
    title="DequantizeLinear of values that nobody quantized",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""Codes come in as an input of the graph, or out of an operator that is no
    QuantizeLinear. TensorRT-RTX 1.7.1 takes it; whether the caller quantizes as the DQ expects is
    outside the graph. ONNX Runtime 1.31.1 leaves the layer behind int8 codes of this kind in float.""",
    remedy="""feed floats and quantize inside the graph, or make sure that the caller uses the
    DQ's grid""",
)
def no_quantize(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(DEQUANTIZE):
        value = node.input[0]
        if view.is_weight(node):
            continue
        made_by = view.producer(value)
        while made_by is not None and _keeps_codes(made_by, target) and is_standard(made_by):
            value = made_by.input[0]
            made_by = view.producer(value)
        if made_by is None:
            yield Hit(label(node), f"the codes {value!r} are an input of the graph")
        elif made_by.op_type not in (QUANTIZE, "DynamicQuantizeLinear", *_INTEGER_OPERATORS):
            yield Hit(label(node), f"the codes come from {made_by.op_type} {label(made_by)!r}")


@rule(
    "PAIR-CODES-COMPUTED",
    title="arithmetic on codes",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""Between Q and DQ there are codes, not values. Operators that only move them
    (Reshape, Transpose, MaxPool, Concat) are right there; one that computes (Relu, Add) works on
    integers whose scale it does not know. Nothing fuses across it. For ONNX Runtime a Clip is right
    too: it makes the grid narrower, and 1.31.1 keeps the kernels on both of its sides.""",
    remedy="move the operator in front of the QuantizeLinear or behind the DequantizeLinear",
)
def codes_computed(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        for reader in view.readers(node.output[0]):
            if reader.op_type in (DEQUANTIZE, *_INTEGER_OPERATORS) or _keeps_codes(reader, target):
                continue
            yield Hit(label(reader), f"{reader.op_type} reads the codes of {label(node)!r}")


@rule(
    "PAIR-TWO-GRIDS",
    title="Q and DQ of different grids",
    tensorrt="error",
    ort_cpu="warning",
    explanation="""A pair with two scales multiplies the value by their quotient, one with two
    zero points shifts it. Both runtimes take it (TensorRT-RTX 1.7.1, ONNX Runtime 1.31.1) and
    compute just that. It is what a seeded or real fault in one scale looks like: nobody writes it
    on purpose.""",
    remedy="give both nodes the same scale and zero point: let them read the same initializers",
)
def two_grids(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(DEQUANTIZE):
        quantize = view.producer(node.input[0])
        if quantize is None or quantize.op_type != QUANTIZE:
            continue
        mine, theirs = view.grid(node), view.grid(quantize)
        if mine.same_as(theirs) is False:
            yield Hit(
                label(node),
                f"{label(quantize)!r} before it is {theirs}; this one is {mine}",
            )


@rule(
    "PAIR-TWICE",
    title="two pairs in a row",
    tensorrt="warning",
    ort_cpu="note",
    explanation="""A value that is on a grid is rounded to a grid again. With one grid the
    second pair does nothing; with two it costs accuracy and, in TensorRT, a kernel that converts
    codes.""",
    remedy="take one of the pairs out",
)
def twice(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        before = view.dequantizer(node.input[0])
        if before is not None and not view.is_weight(before):
            same = view.grid(before).same_as(view.grid(node))
            kind = "of the same grid" if same else "of another grid"
            yield Hit(
                label(node), f"its input comes from DequantizeLinear {label(before)!r}, {kind}"
            )
