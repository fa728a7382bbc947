"""Rules about element types: what TensorRT has none of, half precision, float32 that was left over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from exporters.lint.finding import Level
from exporters.lint.registry import Hit, rule
from exporters.lint.rules.placement import came_dequantized
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, Refusal, is_standard, label

_HALF = ("float16", "bfloat16")
# ONNX: T1 of QuantizeLinear and of DequantizeLinear's scale has them from here on.
_HALF_SCALES_FROM = 19
# Every element type of ONNX 1.23 was tried as input, initializer, Constant and Cast in TensorRT-RTX 1.7.1.
_TENSORRT_TYPES = frozenset(
    {
        "bfloat16",
        "bool",
        "double",  # becomes float32: a rule of its own
        "float",
        "float16",
        "float4e2m1",
        "float8e4m3fn",
        "int32",
        "int4",
        "int64",
        "int8",
        "uint8",  # as input and output only: a rule of its own
    }
)
# Layers whose time depends on the precision that they run at.
_HEAVY = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "AveragePool",
    "GlobalAveragePool",
    "MaxPool",
    "BatchNormalization",
    "LayerNormalization",
    "InstanceNormalization",
    "Softmax",
    "Sigmoid",
    "HardSwish",
    "Gelu",
    "Resize",
    "Concat",
    "ReduceMean",
)
_WHOLE = frozenset({"bool", "int32", "int64"})
# Types that the importer of TensorRT-RTX 1.7.1 refuses at an operator, tried one by one.
_NOT_IMPORTED: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            "Ceil",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Log",
            "Reciprocal",
            "Sigmoid",
            "Softmax",
            "Softplus",
            "Sqrt",
            "Tanh",
        ),
        _WHOLE,
    ),
    **dict.fromkeys(
        (
            "Abs",
            "Clip",
            "GlobalAveragePool",
            "Neg",
            "ReduceMax",
            "ReduceMean",
            "ReduceSum",
            "Sign",
        ),
        frozenset({"bool"}),
    ),
    "Relu": frozenset({"bool", "int32"}),
    "Not": frozenset({"float", "float16", "int32", "int64", "int8"}),
}


@rule(
    "TYPE-UNSUPPORTED",
    title="element type that TensorRT does not have",
    tensorrt="error",
    refused=True,
    explanation="""TensorRT has float32, float16, bfloat16, float8 (E4M3), float4 (E2M1), int64,
    int32, int8, int4, uint8 and bool. Its importer refuses any other type as input, initializer
    (read or not), Constant or result of a Cast (every type of ONNX 1.23 was tried with TensorRT-RTX
    1.7.1).""",
    remedy="convert outside the model, and give the model one of TensorRT's types",
)
def unsupported(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    of_quantizers = {
        value for node in view.of_type(QUANTIZE, DEQUANTIZE) for value in node.input
    }  # those are GRID-CODES
    for name in [*view.inputs, *view.source.constants]:
        dtype = view.dtype(name)
        if dtype and dtype not in _TENSORRT_TYPES and name not in of_quantizers:
            yield Hit(name, f"{name!r} is {dtype}")
    for node in view.of_type("Cast"):
        dtype = view.dtype(node.output[0])
        if dtype and dtype not in _TENSORRT_TYPES:
            yield Hit(label(node), f"Cast to {dtype}")


@rule(
    "TYPE-UINT8-INSIDE",
    title="uint8 between two nodes",
    tensorrt="error",
    refused=True,
    explanation="""TensorRT knows uint8 as input and output of the network only: a Cast to uint8
    that another node reads is refused ("TensorRT does not support UINT8 types for intermediate
    tensors", TensorRT-RTX 1.7.1).""",
    remedy="cast to int32, or leave the bytes in float",
)
def uint8_inside(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Cast"):
        if view.dtype(node.output[0]) == "uint8" and view.readers(node.output[0]):
            yield Hit(label(node), "Cast to uint8, which another node reads")


@rule(
    "TYPE-DOUBLE",
    title="float64",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""TensorRT has no float64: its importer makes float32 of it, and values beyond
    that range become the largest float32. ONNX Runtime computes in float64 and quantizes nothing of
    it.""",
    remedy="export the model in float32",
)
def double(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name in [*view.inputs, *view.source.constants]:
        if view.dtype(name) == "double":
            yield Hit(name, f"{name!r} is float64")


@rule(
    "TYPE-INT64",
    title="int64 input",
    tensorrt="note",
    explanation="""TensorRT has int64 from 10.0 on, and the engine then wants int64 at this
    input. Before that its importer makes int32 of it and clamps, and the engine wants int32.""",
    remedy="feed what the engine's input says; int32 works everywhere",
)
def int64(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name in view.inputs:
        if view.dtype(name) == "int64":
            wants = "int64" if target.version >= (10, 0) else "int32, values are clamped"
            level: Level = "note" if target.version >= (10, 0) else "warning"
            yield Hit(name, f"the input {name!r} is int64; the engine wants {wants}", level=level)


@rule(
    "TYPE-HALF-SCALE",
    title="float16 scale below opset 19",
    tensorrt="error",
    ort_cpu="error",
    explanation="""QuantizeLinear and DequantizeLinear take float16 and bfloat16 from opset 19
    on; before, float32 alone. ONNX Runtime does not load such a file. The importer of TensorRT-RTX
    1.7.1 does not look at it, others may.""",
    remedy="export with opset 19 or later",
)
def half_scale(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if not 0 < view.opset < _HALF_SCALES_FROM:
        return
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        types = {view.dtype(node.input[1]), view.dtype(node.input[0])}
        if types & set(_HALF):
            yield Hit(
                label(node),
                f"{node.op_type} of {'/'.join(sorted(types & set(_HALF)))} in opset {view.opset}",
            )


@rule(
    "TYPE-MIXED-QUANTIZER",
    title="scale of another type than the value",
    tensorrt="note",
    ort_cpu="error",
    explanation="""Up to opset 22 a QuantizeLinear's scale has the type of its input (float16
    with float16). ONNX Runtime 1.31.1 refuses the file otherwise; TensorRT-RTX 1.7.1 takes it and
    converts.""",
    remedy="write the scale in the type of the value that is quantized",
)
def mixed_quantizer(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if view.opset >= 23:
        return
    for node in view.of_type(QUANTIZE):
        value, step = view.dtype(node.input[0]), view.dtype(node.input[1])
        if value and step and value != step:
            yield Hit(label(node), f"{node.input[0]!r} is {value}, its scale {step}")


@rule(
    "TYPE-CONFLICT",
    title="element types that an operator does not take",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""The operator does not take this element type in the file's opset, or not two that
    differ, or the file says of a value another type than the node makes. ONNX Runtime 1.31.1 does
    not load it ("Type Error"). NVIDIA's importer refuses two types at one operator
    ("must have same input types", TensorRT-RTX 1.7.1), int32, int64 and bool at Sigmoid, Softmax and
    other operators of floats, int32 at Relu, and bool at nearly all ("Found unsupported input
    type"); it ignores what the file says of values inside, which is a warning. Half
    precision at quantizers, and what TensorRT takes there, are other rules.""",
    remedy="put a Cast before the node, or export again",
)
def conflict(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    named = set()
    if target.is_tensorrt:
        for op_type, types in _NOT_IMPORTED.items():
            for node in view.of_type(op_type):
                if view.dtype(node.input[0]) in types:
                    named.add(label(node))
                    yield Hit(label(node), f"{op_type} of {view.dtype(node.input[0])}")
    found = view.type_conflict
    if found is None or found.node in named or _judged_as_quantizer(view, target, found):
        return
    both = "has inconsistent type" in found.text
    yield Hit(
        found.node,
        f"{found.op_type}: {found.text}",
        level=None if both or not target.is_tensorrt else "warning",
        refused=both,
    )


def _judged_as_quantizer(view: GraphView, target: LintTarget, found: Refusal) -> bool:
    """Whether the types are those of a quantizer that another rule speaks of."""
    if found.op_type not in (QUANTIZE, DEQUANTIZE):
        return False
    if target.is_tensorrt:
        return True
    for node in view.of_type(found.op_type):
        if node.name == found.node:
            value, step = view.dtype(node.input[0]), view.dtype(node.input[1])
            return bool({value, step} & set(_HALF)) or (node.op_type == QUANTIZE and value != step)
    return False


@rule(
    "TYPE-FLOAT-LEFTOVER",
    title="float32 layer in a graph that TensorRT types strongly",
    tensorrt="note",
    explanation="""TensorRT 11 always, and 10.12 and later on request, run every layer in the
    type that the graph gives it: there is no FP16 switch any more. What stands outside Q/DQ in
    float32 runs in float32 (TF32), not in FP16. For target tensorrt that is what was asked for; for
    tensorrt-fp16 it is a leftover.""",
    remedy="""write what stands between the Q/DQ islands in float16 (compress-deploy export,
    target tensorrt-fp16); leave layers float32 by name only where accuracy needs it""",
)
def float_leftover(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    half = target.runtime == "tensorrt-fp16"
    if not view.quantized and not half:
        return
    if not (half or target.always_strongly_typed):
        return
    for node in view.of_type(*_HEAVY):
        if not is_standard(node) or all(view.is_constant(value) for value in node.input if value):
            continue
        if view.dtype(node.output[0]) != "float" or _between_codes(view, node.input):
            continue
        before = view.producer(node.input[0])
        if (
            node.op_type == "BatchNormalization"
            and before is not None
            and before.op_type in _HEAVY[:2]
        ):
            continue  # TensorRT folds it into the convolution
        yield Hit(label(node), f"{node.op_type} runs in float32", level="warning" if half else None)


def _between_codes(view: GraphView, inputs: Iterable[str]) -> bool:
    """Whether every activation is dequantized codes: TensorRT then chooses an integer kernel."""
    activations = [value for value in inputs if view.is_activation(value)]
    return all(came_dequantized(view, value) is not None for value in activations)
