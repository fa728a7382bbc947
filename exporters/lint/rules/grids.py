"""Rules about the grid of one quantizer: zero point, type of codes, scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, label

# What the importer of TensorRT-RTX 1.7 takes as codes. int32 is a rule of its own: it is a bias.
_TENSORRT_CODES = ("int8", "uint8", "int4", "float8e4m3fn", "float4e2m1", "int32", "")


@rule(
    "GRID-ZERO-POINT",
    title="zero point that is not zero",
    tensorrt="error",
    refused=True,
    explanation="""TensorRT quantizes symmetrically: a code times its scale is the value.
    NVIDIA's importer refuses every Q/DQ whose zero point is not 0 ("Non-zero zero point is not
    supported", seen with TensorRT-RTX 1.7.1; the flag that the message names is for DLA alone).
    This is what most tools write by default for activations: ONNX Runtime's quantize_static,
    torchao's PT2E quantizers.""",
    remedy="""quantize activations and weights symmetrically as int8 with zero point 0: with
    quantize_static extra_options ActivationSymmetric and WeightSymmetric and type QInt8; with
    compress-deploy export for target tensorrt""",
)
def zero_point(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.grid_nodes():
        grid = view.grid(node)
        if grid.zero_point is not None and np.any(grid.zero_point != 0):
            value = int(np.ravel(grid.zero_point)[np.argmax(np.ravel(grid.zero_point) != 0)])
            equal = (
                ", the same grid as int8 with 0" if (grid.dtype, value) == ("uint8", 128) else ""
            )
            yield Hit(label(node), f"zero point {value} of {grid.dtype}{equal}; accepted is 0")


@rule(
    "GRID-ZERO-POINT-NOT-CONSTANT",
    title="zero point that is computed while running",
    tensorrt="error",
    explanation="""TensorRT wants the zero point as an initializer. The importer of TensorRT-RTX
    1.7.1 lets such a graph pass and the builder then refuses it ("zero_point which is not an
    initializer").""",
    remedy="write the zero point as an initializer of zeros, or leave it out",
)
def zero_point_not_constant(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.grid_nodes():
        computed = len(node.input) > 2 and _from_dynamic_quantizer(view, node.input[2])
        if not view.grid(node).zero_is_constant and not computed:
            yield Hit(label(node), f"the zero point {node.input[2]!r} is not constant")


def _from_dynamic_quantizer(view: GraphView, value: str) -> bool:
    made_by = view.producer(value)
    return made_by is not None and made_by.op_type == "DynamicQuantizeLinear"


@rule(
    "GRID-UINT8-ACTIVATION",
    title="uint8 activation that TensorRT reads as int8",
    tensorrt="error",
    explanation="""TensorRT has no uint8 codes outside DLA. Its importer prints a warning,
    "Defaulting to INT8", and goes on (TensorRT-RTX 1.7.1): the graph parses and builds, the same
    scale now spans 127 steps instead of 255, and whatever lay above half of the range is clamped
    without a word. A QuantizeLinear without a zero point and without output_dtype is uint8 too,
    says the ONNX operator set.""",
    remedy="""export int8 activations with a scale made for 127 steps (compress-deploy export,
    target tensorrt); renaming the type alone halves the range""",
)
def uint8_activation(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        grid = view.grid(node)
        if grid.dtype == "uint8" and not view.is_weight(node) and not _any_nonzero(grid.zero_point):
            implied = " (it has no zero point, which means uint8)" if len(node.input) < 3 else ""
            yield Hit(
                label(node),
                f"uint8 codes{implied}: values above 127 steps{_reach(grid.scale)} are clamped",
            )


def _reach(scale: np.ndarray | None) -> str:
    if scale is None or scale.size != 1:
        return ""
    return f", {127 * float(np.ravel(scale)[0]):.4g},"


@rule(
    "GRID-UINT8-WEIGHTS",
    title="uint8 weights",
    tensorrt="error",
    ort_cpu="warning",
    refused=True,
    explanation="""NVIDIA's importer refuses constants of uint8 before a DequantizeLinear
    ("unsupported input type of UINT8", TensorRT-RTX 1.7.1). ONNX Runtime takes them on a slower
    path: 1.52 instead of 0.56 ms for four 3x3 convolutions of 64 channels (1.31.1, x86-64 with
    VNNI, one thread).""",
    remedy="store weights as int8, zero point 0, one scale for each output channel",
)
def uint8_weights(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(DEQUANTIZE):
        if view.grid(node).dtype == "uint8" and view.is_weight(node):
            stored = view.producer(node.input[0]) is None
            yield Hit(
                label(node),
                f"the weights {node.input[0]!r} are uint8",
                refused=stored or _any_nonzero(view.grid(node).zero_point),
            )


def _any_nonzero(zero_point: np.ndarray | None) -> bool:
    return zero_point is not None and bool(np.any(zero_point != 0))


@rule(
    "GRID-CODES",
    title="codes of a type without kernels",
    tensorrt="error",
    refused=True,
    explanation="""TensorRT quantizes to int8, int4, float8 (E4M3) and float4; 16-bit codes are
    refused with the initializer that holds them (TensorRT-RTX 1.7.1). ONNX Runtime's convolutions
    and Gemm compute int8 and uint8 only; a layer between other codes runs in float.""",
    remedy="quantize to 8 bits, or take the pair out and leave the layer in float on purpose",
)
def codes(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.grid_nodes():
        dtype = view.grid(node).dtype
        if dtype not in _TENSORRT_CODES:
            yield Hit(label(node), f"{node.op_type} with {dtype} codes")


@rule(
    "GRID-SCALE",
    title="scale that is zero, negative or not finite",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""Nothing can be quantized with such a scale. NVIDIA's importer refuses zero,
    negative and NaN scales ("Scale coefficients must all be positive", TensorRT-RTX 1.7.1) and lets
    infinity pass. ONNX Runtime 1.31.1 loads all of them: zero makes every value 0, infinity and NaN
    one constant. A zero usually is a channel of weights, or an activation, that was always 0 in
    calibration.""",
    remedy="""give dead channels any positive scale, e.g. 2^-10, and calibrate with data that
    reaches the layer""",
)
def scale(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.grid_nodes():
        values = view.grid(node).scale
        if values is None or values.dtype == np.dtype("O"):
            continue
        flat = np.ravel(values).astype(np.float64)
        wrong = np.flatnonzero(~((flat > 0) & np.isfinite(flat)))
        if wrong.size:
            first = int(wrong[0])
            where = (
                f" in {wrong.size} of {flat.size} channels, the first is {first}"
                if flat.size > 1
                else ""
            )
            yield Hit(
                label(node),
                f"scale {flat[first]:g}{where}; accepted is a positive finite number",
                level="warning" if not target.is_tensorrt and np.all(flat[wrong] < 0) else None,
                refused=bool(np.any(~(flat > 0))),
            )


@rule(
    "GRID-SCALE-NOT-CONSTANT",
    title="scale that is computed while running",
    tensorrt="error",
    explanation="""Integer kernels have their scales built in. The importer of TensorRT-RTX
    1.7.1 lets a scale that is computed from data pass, and building the engine then ended in a
    segmentation fault. ONNX Runtime runs the layer in float.""",
    remedy="calibrate, and write every scale as an initializer",
)
def scale_not_constant(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.grid_nodes():
        value = node.input[1]
        if not view.is_constant(value) and not _from_dynamic_quantizer(view, value):
            yield Hit(label(node), f"the scale {value!r} is not constant")


@rule(
    "GRID-PER-CHANNEL-ACTIVATION",
    title="activation with one scale per channel",
    tensorrt="error",
    explanation="""A sum over input channels cannot be taken out of codes that have a scale
    each, so no integer kernel exists. TensorRT's headers allow per-channel scales for weights only,
    yet its importer takes them anywhere (TensorRT-RTX 1.7.1 parses and builds such a graph), and
    what is computed then is nobody's promise. ONNX Runtime leaves the layer in float.""",
    remedy="""quantize activations with one scale for the tensor; equalize channels before
    calibration if it costs""",
)
def per_channel_activation(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        grid = view.grid(node)
        if grid.per_channel and not view.is_weight(node):
            assert grid.scale is not None
            yield Hit(
                label(node), f"{grid.scale.size} scales along axis {grid.axis} of {node.input[0]!r}"
            )


@rule(
    "GRID-BLOCKED-ACTIVATION",
    title="activation with one scale per block",
    tensorrt="error",
    refused=True,
    explanation="""Blocks are for weights of 4 bits and for FP8 and FP4. NVIDIA's importer takes
    them along the last two axes only ("The blocking dimension must be the last or second to last",
    TensorRT-RTX 1.7.1); ONNX Runtime leaves the layer in float.""",
    remedy="quantize activations with one scale for the tensor",
)
def blocked_activation(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        grid = view.grid(node)
        if grid.block_size and not view.is_weight(node):
            shape = view.shape(node.input[0])
            early = shape is not None and grid.axis % len(shape) < len(shape) - 2
            yield Hit(
                label(node), f"blocks of {grid.block_size} along axis {grid.axis}", refused=early
            )


@rule(
    "GRID-SCALAR",
    title="quantizer on a scalar",
    tensorrt="warning",
    explanation="""TensorRT documents that the input of a quantizer is no scalar. TensorRT-RTX
    1.7.1 takes it; other versions were not tried.""",
    remedy="take the pair off: a scalar costs nothing in float",
)
def scalar(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(QUANTIZE):
        if view.shape(node.input[0]) == () and not view.is_weight(node):
            yield Hit(label(node), f"{node.input[0]!r} is a scalar")
