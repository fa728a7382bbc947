"""Rules about what ONNX Runtime leaves in float, and so slower than a float model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exporters.lint.ort_kernels import Cause, left_in_float
from exporters.lint.registry import Check, Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView, label
from exporters.ort_fusion import WEIGHTED

_KNOWN = (
    "Seen with onnxruntime 1.31.1 on x86-64, whose optimised graph this rule is compared with in its "
    "tests."
)


def _stays_float(id: str, cause: Cause, *, explanation: str, **facts: Any) -> None:
    """Register a rule that names the layers left in float for one cause."""

    def check(view: GraphView, target: LintTarget) -> Iterator[Hit]:
        if not view.quantized:
            return  # a float network, whose layers are float on purpose
        for left in left_in_float(view):
            if left.cause == cause:
                yield Hit(label(left.node), f"{left.node.op_type} runs in float: {left.detail}")

    named: Check = check
    rule(id, ort_cpu="warning", stays_float=True, explanation=f"{explanation} {_KNOWN}", **facts)(
        named
    )


_stays_float(
    "ORT-NO-KERNEL",
    "no-kernel",
    title="operator without an integer kernel",
    explanation="""ONNX Runtime's CPU provider has no integer kernel for ReduceMean, Pad,
    HardSwish and ConvTranspose: the codes are dequantized, computed on in float and quantized
    again. torch writes its mean and its adaptive pooling as ReduceMean.""",
    remedy="""write GlobalAveragePool for a mean over height and width; a slice-and-pad shortcut
    as a 1x1 convolution that selects channels; ReLU for HardSwish; or accept a float layer""",
)
_stays_float(
    "ORT-INPUT-FLOAT",
    "input",
    title="layer with an input that is not quantized",
    explanation="""A layer is fused when all of its data inputs come from DequantizeLinear;
    Reshape, Transpose, Slice, Squeeze and MaxPool in between are seen through, Flatten, Split and
    Gather are not. A residual Add or a Concat with one float input is float, and so is the
    convolution that ends in it.""",
    remedy="""put Q/DQ on that input (on both inputs of a residual Add, on all of a Concat);
    write Reshape for Flatten""",
)
_stays_float(
    "ORT-OUTPUT-FLOAT",
    "output",
    title="layer whose output is not quantized",
    explanation="""An integer kernel writes codes, so exactly one QuantizeLinear must read the
    layer's output and nothing else. An output of the graph, a second reader, or an operator in
    between that cannot be absorbed (Sigmoid, HardSwish, Flatten) keeps the layer in float. MatMul
    alone may write floats.""",
    remedy="""put one Q/DQ pair right behind the layer (behind its ReLU) and let all readers
    read it; a last Gemm may stay float on purpose""",
)
_stays_float(
    "ORT-RELU-SIGNED",
    "relu",
    title="ReLU before a grid that reaches below zero",
    explanation="""The ReLU is absorbed when the Q behind it clamps at 0, that is when 0 is its
    lowest code: uint8 with zero point 0, int8 with -128. With int8 and zero point 0, which is
    TensorRT's grid, the convolution stays float: four convolutions of 64 channels took 2.65 ms so,
    1.99 ms in a float model, 0.56 ms with uint8.""",
    remedy="""quantize what comes out of a ReLU as uint8 with zero point 0 (compress-deploy
    export, target ort-cpu): one lowered graph for each target""",
)
_stays_float(
    "ORT-CLIP",
    "clip",
    title="Clip that the quantizer does not clamp as",
    explanation="""A Clip (ReLU6) is absorbed when the range of the Q behind it lies inside the
    clip's. A grid that is wider on one side leaves the Clip, and with it the convolution before it,
    in float.""",
    remedy="""quantize as uint8 with zero point 0 and a scale of at most 6/255, so that the grid
    ends where the clip does""",
)
_stays_float(
    "ORT-BATCH-NORM",
    "batch-norm",
    title="BatchNormalization between a layer and its quantizer",
    explanation="""A batch norm behind quantized weights is not folded by ONNX Runtime and not
    absorbed: layer and norm stay float. TensorRT folds it itself.""",
    remedy="""fold it into weights, scales and bias before export; for per-channel weights that
    is exact""",
)
_stays_float(
    "ORT-INT8-SHARED",
    "int8",
    title="int8 activation that is not rewritten to uint8",
    explanation="""On x86-64 integer kernels take uint8 activations. ONNX Runtime rewrites int8
    pairs to uint8, but only a Q with one DQ behind it and one reader behind that: an activation
    that two layers read (every residual branch), codes that leave the graph, or codes that are
    moved between Q and DQ stay int8, and the layers around them float.""",
    remedy="""quantize activations as uint8: zero point 128 where values have both signs, 0
    behind a ReLU""",
)
_stays_float(
    "ORT-GRID",
    "grid",
    title="grid without integer kernels",
    explanation="""Integer kernels take activations of int8 or uint8 with one constant, finite
    float32 scale. One scale per channel, float16 scales, 16-bit codes, blocks and scales computed
    while running keep a layer in float.""",
    remedy="quantize activations per tensor to 8 bits, with scales written as float32 initializers",
)
_stays_float(
    "ORT-WEIGHTS",
    "weights",
    title="weights or bias that the integer kernel does not take",
    explanation="""QLinearConv and QGemm take int8 or uint8 weights with one scale, or one per
    output channel, and a bias that is a constant: float, or int32 codes. Scales along another axis,
    a bias of 8 bits, one that is computed, and a Gemm's beta keep the layer in float.""",
    remedy="store weights as int8 with scales along the outputs, and a constant float bias",
)
_stays_float(
    "ORT-GEMM-ZERO-POINT",
    "zero-point",
    title="Gemm whose zero points are not written out",
    explanation="""DequantizeLinear may leave out a zero point of 0, and a convolution is fused
    without. A Gemm is not: input and weights both need the third input.""",
    remedy="""write the zero point (zeros of the codes' type) as third input of both
    DequantizeLinear nodes""",
)


@rule(
    "ORT-NOTHING-INTEGER",
    title="quantizers, and not one integer layer",
    ort_cpu="error",
    explanation=f"""The graph is quantized and every layer with weights stays float: it computes
    what an INT8 network computes, slower than the float network did. {_KNOWN}""",
    remedy="""see the warnings for each layer; most often the graph was made for TensorRT:
    export for target ort-cpu""",
)
def nothing_integer(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    weighted = [
        node
        for node in view.of_type(*WEIGHTED)
        if any(view.is_activation(value) for value in node.input)
    ]
    left = {id(one.node) for one in left_in_float(view)}
    if view.quantized and weighted and all(id(node) in left for node in weighted):
        yield Hit("", f"all of {len(weighted)} layers with weights run in float")


# Their sizes follow from the values of these inputs.
_SIZES_FROM = {
    "Expand": (1,),
    "Pad": (1, 3),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}


@rule(
    "ORT-EXTERNAL-SIZES",
    title="sizes in another file",
    ort_cpu="error",
    explanation="""ONNX Runtime 1.31.1 works out sizes before it opens the file with the weights,
    and does not load a model whose Reshape, Pad, Slice and the like have theirs in there ("Cannot
    parse data from external tensors"). NVIDIA's importer does. Somebody saved the model with a
    size_threshold of 0.""",
    remedy="""write one file: onnx.save(onnx.load(path), path); or save with the default
    size_threshold of 1024 bytes""",
)
def external_sizes(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type(*_SIZES_FROM):
        for place in _SIZES_FROM[node.op_type]:
            if place < len(node.input) and node.input[place] in view.external_tensors:
                yield Hit(
                    label(node), f"{node.op_type} reads {node.input[place]!r} from another file"
                )
                break
