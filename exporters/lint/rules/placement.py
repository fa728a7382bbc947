"""Rules about where pairs stand: what keeps TensorRT from fusing a layer with its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, label

if TYPE_CHECKING:
    from onnx import NodeProto

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")
# TensorRT moves DQ forward and Q backward through these.
_COMMUTES = frozenset(
    {
        "MaxPool",
        "AveragePool",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
    }
)


def came_dequantized(view: GraphView, value: str) -> NodeProto | None:
    """The DQ of an activation that ``value`` comes from, through what TensorRT commutes with it."""
    made_by = view.producer(value)
    while made_by is not None and made_by.op_type in _COMMUTES:
        made_by = view.producer(made_by.input[0])
    return made_by if made_by is not None and made_by.op_type == DEQUANTIZE else None


def _convolution_before(view: GraphView, value: str) -> NodeProto | None:
    """The convolution that ends in ``value``, batch norm and activation in between or not."""
    made_by = view.producer(value)
    while made_by is not None and made_by.op_type in ("BatchNormalization", *_ACTIVATIONS):
        made_by = view.producer(made_by.input[0])
    return made_by if made_by is not None and made_by.op_type in _CONVOLUTIONS else None


@rule(
    "PLACE-ADD-ONE-SIDED",
    title="residual Add with one quantized input",
    tensorrt="warning",
    explanation="""TensorRT fuses a convolution with the Add behind it and with the Q behind
    that, in integers, when the Add's other input is dequantized codes. With one float input the
    output of the fused convolution is float, and the layer runs at the float side's precision
    (NVIDIA's guide to explicit quantization: quantize the residual input too).""",
    remedy="put Q/DQ on both inputs of the Add",
)
def add_one_sided(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Add", "Sum"):
        if any(view.is_constant(value) for value in node.input):
            continue  # a bias is no residual
        fed = [came_dequantized(view, value) is not None for value in node.input]
        if any(fed) and not all(fed):
            loose = [
                value for value, dequantized in zip(node.input, fed, strict=True) if not dequantized
            ]
            made_by = view.producer(loose[0])
            origin = (
                f"{made_by.op_type} {label(made_by)!r}"
                if made_by is not None
                else "the graph's input"
            )
            yield Hit(label(node), f"its input {loose[0]!r} comes from {origin} without Q/DQ")


@rule(
    "PLACE-ADD-UNQUANTIZED",
    title="residual Add between quantized layers with no quantized input",
    tensorrt="warning",
    explanation="""Convolutions on both sides compute with integers, the Add between them does
    not: both branches are dequantized, added in float and quantized again, memory traffic four
    times that of codes.""",
    remedy="put Q/DQ on both inputs of the Add",
)
def add_unquantized(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Add", "Sum"):
        if any(view.is_constant(value) for value in node.input):
            continue
        branches = [_convolution_before(view, value) for value in node.input]
        quantized = [
            branch is not None and view.dequantizer(branch.input[0]) is not None
            for branch in branches
        ]
        if any(quantized) and not any(came_dequantized(view, value) for value in node.input):
            yield Hit(label(node), "neither of its inputs comes through Q/DQ")


@rule(
    "PLACE-CONCAT-SCALES",
    title="Concat of inputs with different scales",
    tensorrt="warning",
    explanation="""A Concat of codes is free when all inputs are on one grid: the layers before
    it write into one buffer. With two scales TensorRT has to bring each input onto the output's
    grid first, a pass over memory that the graph does not show. ONNX Runtime's QLinearConcat does
    the same and fuses.""",
    remedy="calibrate the inputs of a Concat together and give their quantizers one shared scale",
)
def concat_scales(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Concat"):
        fed = [came_dequantized(view, value) for value in node.input if view.is_activation(value)]
        grids = [view.grid(dequantize) for dequantize in fed if dequantize is not None]
        scales = sorted(
            {float(g.scale.ravel()[0]) for g in grids if g.scale is not None and g.scale.size}
        )
        if len(scales) > 1:
            yield Hit(
                label(node),
                f"{len(grids)} inputs with the scales {', '.join(f'{s:.4g}' for s in scales)}",
            )


@rule(
    "PLACE-CONCAT-ONE-SIDED",
    title="Concat of codes and floats",
    tensorrt="warning",
    explanation="""One input comes from DequantizeLinear and another does not: TensorRT
    concatenates in float, and the quantized branch gains nothing from its codes.""",
    remedy="put Q/DQ of one shared grid on every input of the Concat",
)
def concat_one_sided(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Concat"):
        activations = [value for value in node.input if view.is_activation(value)]
        loose = [value for value in activations if came_dequantized(view, value) is None]
        if loose and len(loose) < len(activations):
            yield Hit(label(node), f"its input {loose[0]!r} comes without Q/DQ")


@rule(
    "PLACE-BEFORE-ACTIVATION",
    title="pair between a convolution and its activation",
    tensorrt="warning",
    ort_cpu="note",
    explanation="""TensorRT fuses convolution, batch norm and activation into one kernel and
    lets a Q behind them set the kernel's output type. A pair in between splits that kernel and
    rounds negative values that the activation throws away. ONNX Runtime then runs the activation in
    float between DQ and Q (0.63 instead of 0.56 ms for four convolutions, 1.31.1). ONNX Runtime's
    quantize_static writes such pairs.""",
    remedy="quantize behind the activation only",
)
def before_activation(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("BatchNormalization", *_ACTIVATIONS):
        dequantize = view.dequantizer(node.input[0])
        if dequantize is None or view.sole_reader(dequantize.output[0]) is None:
            continue  # another layer reads the value before the activation, so it is needed
        quantize = view.producer(dequantize.input[0])
        if quantize is None or quantize.op_type != QUANTIZE:
            continue
        convolution = view.producer(quantize.input[0])
        if convolution is not None and convolution.op_type in _CONVOLUTIONS:
            yield Hit(
                label(node),
                f"Q/DQ stands between {convolution.op_type} {label(convolution)!r} and it",
            )


@rule(
    "PLACE-INPUT-FLOAT",
    title="quantized weights behind a float input",
    tensorrt="warning",
    explanation="""Weights come from int8, the input does not: TensorRT dequantizes the weights
    and runs the layer in float (weight-only quantization, good for memory, not for time). It is
    also what is left when one Q/DQ pair was deleted.""",
    remedy="put Q/DQ on the layer's input, or leave its weights float if it shall stay float",
)
def input_float(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Conv", "ConvTranspose", "Gemm", "MatMul"):
        if view.weight_dequantizer(node.input[1]) is None or not view.is_activation(node.input[0]):
            continue
        if came_dequantized(view, node.input[0]) is None:
            yield Hit(label(node), f"its input {node.input[0]!r} comes without Q/DQ")


@rule(
    "PLACE-MATMUL-ONE-SIDED",
    title="MatMul of two activations with one quantized input",
    tensorrt="warning",
    explanation="""A MatMul computes with integers when both inputs come from DequantizeLinear.
    In attention both are activations, and quantizers are often placed for the weights of linear
    layers alone.""",
    remedy="put Q/DQ on both inputs, or on neither",
)
def matmul_one_sided(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("MatMul"):
        if not all(view.is_activation(value) for value in node.input):
            continue
        fed = [came_dequantized(view, value) is not None for value in node.input]
        if any(fed) and not all(fed):
            yield Hit(label(node), f"its input {node.input[fed.index(False)]!r} comes without Q/DQ")


@rule(
    "PLACE-NO-QUANTIZERS",
    title="no quantizer in the graph",
    tensorrt="note",
    ort_cpu="note",
    explanation="""The graph is a float network. That is legal; rules about Q/DQ have nothing to
    say. TensorRT 11 has no INT8 switch and no calibration any more: precision is what the graph
    says.""",
    remedy="""quantize it if it shall run in INT8: compress-deploy run, or ONNX Runtime's
    quantize_static""",
)
def no_quantizers(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if not view.quantized:
        yield Hit("", "there is no QuantizeLinear or DequantizeLinear")
