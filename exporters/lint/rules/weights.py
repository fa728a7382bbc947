"""Rules about weights and biases of convolutions, Gemm and MatMul."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporters.lint.registry import Hit, rule
from exporters.lint.rules.placement import came_dequantized
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, attributes_of, label

if TYPE_CHECKING:
    from onnx import NodeProto

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def output_axis(node: NodeProto, rank: int) -> int:
    """The axis of a layer's weights that counts its outputs."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attributes_of(node).get("transB", 0) else 1
    return rank - 1


def _quantized_weights(view: GraphView) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Layers with the DQ that makes their weights, where it does so directly."""
    for node in view.of_type(*WEIGHTED):
        dequantize = view.dequantizer(node.input[1])
        if dequantize is not None and view.is_weight(dequantize):
            yield node, dequantize


@rule(
    "WEIGHT-AXIS",
    title="scales along the wrong axis of the weights",
    tensorrt="error",
    ort_cpu="warning",
    explanation="""One scale per channel works along the outputs only: axis 0 of a convolution
    (KCRS), 1 of a transposed one (CKRS), the output axis of Gemm and MatMul. Along another axis no
    integer kernel is equal to the graph. NVIDIA's importer takes it all the same (TensorRT-RTX
    1.7.1). ONNX Runtime 1.31.1 leaves a convolution in float; a square Gemm without transB and a
    square MatMul are fused with the scales read as if they were the outputs', and are wrong by
    several steps without a word; a MatMul that is not square fails in the first call.
    DequantizeLinear's axis is 1 where none is written.""",
    remedy="""quantize weights along the output axis: 0 for Conv, 1 for ConvTranspose, the last
    for MatMul""",
)
def axis(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node, dequantize in _quantized_weights(view):
        grid = view.grid(dequantize)
        shape = view.shape(dequantize.input[0])
        if not grid.per_channel or not shape:
            continue
        wanted = output_axis(node, len(shape))
        if grid.axis % len(shape) != wanted:
            misread = node.op_type == "MatMul" or (node.op_type == "Gemm" and wanted == 1)
            yield Hit(
                label(node),
                f"the weights' scales run along axis {grid.axis} of {list(shape)}; accepted is {wanted}",
                level="error" if misread else None,
            )


def _count(view: GraphView, value: str) -> int | None:
    """How many numbers a value holds, where all of its sizes are known."""
    shape = view.shape(value) if value else None
    sizes = [size for size in shape or () if isinstance(size, int)]
    return None if shape is None or len(sizes) != len(shape) else math.prod(sizes)


@rule(
    "WEIGHT-SCALES",
    title="fewer or more scales than channels",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""NVIDIA's importer refuses it ("The number of scales is not equal to the
    number of output channels", "The scale and zero point must have the same volume", TensorRT-RTX
    1.7.1); ONNX Runtime 1.31.1 loads the graph and fails
    in the first call. Usually channels were cut after quantization and the scales were forgotten.""",
    remedy="cut scales and zero points together with the weights, or quantize again",
)
def scales(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        sizes = [_count(view, value) for value in node.input[1:3]]
        if len(sizes) == 2 and None not in sizes and sizes[0] != sizes[1]:
            yield Hit(label(node), f"{sizes[0]} scales and {sizes[1]} zero points")
    for node in view.of_type(DEQUANTIZE):
        grid, shape = view.grid(node), view.shape(node.input[0])
        if not grid.per_channel or grid.scale is None or shape is None:
            continue
        place = grid.axis % len(shape) if shape else 0
        if isinstance(shape[place], int) and shape[place] != grid.scale.size:
            yield Hit(
                label(node),
                f"{grid.scale.size} scales along axis {grid.axis}, which has {shape[place]} positions",
            )


@rule(
    "WEIGHT-BIAS",
    title="quantized bias",
    tensorrt="error",
    refused=True,
    explanation="""NVIDIA's importer takes no int32 codes ("input has type Int32 but must have
    type FP8, FP4, Int4, Int8, or UInt8", TensorRT-RTX 1.7.1), and an int32 bias behind
    DequantizeLinear is what ONNX Runtime's quantize_static writes by default. Neither runtime needs
    it: both quantize a float bias on their own.""",
    remedy="keep the bias in float: quantize_static has extra_options QuantizeBias=False",
)
def bias(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(DEQUANTIZE):
        if view.grid(node).dtype == "int32" or view.dtype(node.input[0]) == "int32":
            yield Hit(label(node), f"{node.input[0]!r} is int32; accepted is a float bias")


@rule(
    "WEIGHT-BIAS-8-BIT",
    title="bias of 8 bits",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""A bias is added to sums of products and has their range; 8 bits are too
    coarse for it. ONNX Runtime 1.31.1 leaves the whole layer in float; the importer of TensorRT-RTX
    1.7.1 takes it, and what it becomes was not seen.""",
    remedy="keep the bias in float",
)
def bias_8_bit(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Conv", "ConvTranspose", "Gemm"):
        dequantize = view.weight_dequantizer(node.input[2]) if len(node.input) > 2 else None
        if dequantize is not None and view.grid(dequantize).dtype in ("int8", "uint8"):
            yield Hit(
                label(node), f"its bias {node.input[2]!r} has {view.grid(dequantize).dtype} codes"
            )


@rule(
    "WEIGHT-FLOAT",
    title="float weights behind a quantized input",
    tensorrt="warning",
    ort_cpu="note",
    explanation="""TensorRT computes with integers when every input of the layer comes from
    DequantizeLinear; with float weights the input is dequantized again and the layer runs in float.
    ONNX Runtime quantizes such weights of Conv and Gemm itself, with one scale for the whole
    tensor, which costs accuracy.""",
    remedy="""put Q/DQ on the weights, one scale for each output channel, or store them as int8
    with a DQ""",
)
def float_weights(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(*WEIGHTED):
        weight = node.input[1]
        if not view.is_constant(weight) or view.weight_dequantizer(weight) is not None:
            continue
        if came_dequantized(view, node.input[0]) is not None:
            head = view.is_output(node.output[0])  # a float last layer is what many want
            yield Hit(
                label(node),
                f"its input is quantized, its weights {weight!r} are float",
                level="note" if head else None,
            )
