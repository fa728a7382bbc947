"""Rules about NVIDIA's Deep Learning Accelerator, asked for with --dla.

Facts: "DLA Supported Layers and Restrictions", "Strongly Typed Networks for DLA" and "Working with DLA" of
NVIDIA's TensorRT documentation (11.4.1); none of them was run here, no DLA was at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import QUANTIZE, GraphView, attributes_of, is_standard, label

_SOURCE = "NVIDIA's TensorRT documentation says so; it was not run here."
_LARGEST_BATCH, _LARGEST_SIZE = 4096, 8192
_LAYERS = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Concat",
        "Constant",
        "Conv",
        "ConvTranspose",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "Identity",
        "LRN",
        "LeakyRelu",
        "Less",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "PRelu",
        "Pow",
        "QuantizeLinear",
        "ReduceMax",
        "Relu",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Squeeze",
        "Sub",
        "Sum",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    }
)


@rule(
    "DLA-VERSION",
    title="TensorRT version without DLA",
    tensorrt="error",
    explanation=f"""10.7 is the last 10.x release with DLA (JetPack 6 has 10.3); 10.16 on
    JetPack 7.2 reports no DLA core; it is back from 11.4.1 on JetPack 7.2.2, on AGX Orin alone.
    {_SOURCE}""",
    remedy="""use JetPack 6 (TensorRT 10.3), or JetPack 7.2.2 with TensorRT 11.4.1 or later on
    AGX Orin; or leave --dla out""",
)
def version(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if target.dla and not target.has_dla:
        yield Hit("", f"{target} has no DLA")


@rule(
    "DLA-SHAPE",
    title="size that a DLA does not take",
    tensorrt="error",
    explanation=f"""A DLA runs fixed sizes: a profile's least, best and greatest size must be
    equal. The batch is at most 4096 and every other size 8192. {_SOURCE}""",
    remedy="export fixed sizes, or build with a profile whose three sizes are equal",
)
def shape(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if not target.dla:
        return
    for name in view.inputs:
        sizes = view.shape(name)
        if sizes is None or any(not isinstance(size, int) for size in sizes):
            yield Hit(name, f"the input {name!r} has free sizes", level="warning")
        elif any(
            size > (_LARGEST_SIZE if place else _LARGEST_BATCH)
            for place, size in enumerate(sizes)
            if isinstance(size, int)
        ):
            yield Hit(name, f"the input {name!r} has the sizes {list(sizes)}")


@rule(
    "DLA-LAYER",
    title="layer that a DLA does not run",
    tensorrt="warning",
    explanation=f"""With GPU_FALLBACK the layer runs on the GPU, and the network is cut there:
    each part is a DLA program of its own with copies in between, 16 at most. Without the flag the
    build fails. {_SOURCE}""",
    remedy="""replace the layer, or put all such layers at the network's ends; build with GPU
    fallback""",
)
def layer(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if not target.dla:
        return
    for node in view.all_nodes:
        if all(view.is_constant(value) for value in node.input if value):
            continue
        if not is_standard(node) or node.op_type not in _LAYERS:
            yield Hit(label(node), f"{node.op_type} is no layer of a DLA")
        else:
            limit = _beyond(node.op_type, attributes_of(node))
            if limit:
                yield Hit(label(node), f"{node.op_type} with {limit}")


def _beyond(op_type: str, given: dict[str, Any]) -> str:
    """The first attribute outside a DLA's range, in words."""
    kernel, stride = given.get("kernel_shape", []), given.get("strides", [])
    if op_type in ("Conv", "ConvTranspose"):
        if len(kernel) not in (0, 2):
            return f"a kernel of {len(kernel)} axes; accepted is 2"
        if any(size > 32 for size in kernel):
            return f"the kernel {list(kernel)}; accepted is up to 32"
        if op_type == "Conv" and any(step > 8 for step in stride):
            return f"the strides {list(stride)}; accepted is up to 8"
        if any(size > 31 for size in given.get("pads", [])):
            return f"the padding {list(given['pads'])}; accepted is up to 31"
    if op_type in ("MaxPool", "AveragePool"):
        if any(size > 8 for size in kernel):
            return f"the window {list(kernel)}; accepted is up to 8"
        if any(step > 16 for step in stride):
            return f"the strides {list(stride)}; accepted is up to 16"
    if op_type == "Concat" and given.get("axis", 1) not in (1, -3):
        return f"axis {given['axis']}; accepted is the channels' axis 1"
    return ""


@rule(
    "DLA-TYPE",
    title="precision that a DLA does not have",
    tensorrt="warning",
    explanation=f"""A DLA computes INT8 and FP16, never FP32. A float32 graph needs Q/DQ or
    float16 throughout; with TensorRT 11 the graph's own types decide, with 10.x the flags INT8 and
    FP16. {_SOURCE}""",
    remedy="export for target tensorrt-fp16, so that nothing is left in float32",
)
def dtype(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if not target.dla or not target.always_strongly_typed:
        return
    if not view.of_type(QUANTIZE) and not any(
        view.dtype(name) == "float16" for name in [*view.inputs, *view.source.constants]
    ):
        yield Hit("", "the whole network is float32")
