"""Rules about sizes: empty ones, and those that are known only while running."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporters.lint.finding import Level
from exporters.lint.registry import Hit, rule
from exporters.lint.signatures import misfits
from exporters.lint.sizes import misfitting_sizes, too_small_images
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView, label

if TYPE_CHECKING:
    from onnx import NodeProto


def _shown(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


@rule(
    "SHAPE-EMPTY",
    title="dimension of size zero",
    tensorrt="error",
    ort_cpu="error",
    explanation="""An input or output with a dimension of 0 holds no values. TensorRT-RTX 1.7.1
    parses and builds the graph, and ONNX Runtime 1.31.1 runs it: both give back nothing. It usually
    is a batch size of 0 at export. A window that is larger than its padded image leaves nothing
    either; NVIDIA's importer refuses that ("image size is smaller than filter size").""",
    remedy="export with a batch of at least 1, or with a free batch axis",
)
def empty(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name in [*view.inputs, *(value.name for value in view.graph.output)]:
        shape = view.shape(name)
        if shape is not None and 0 in shape:
            yield Hit(name, f"{name!r} has the shape {_shown(shape)}")
    for node, text in too_small_images(view):
        yield Hit(label(node), f"{node.op_type}: {text}", refused=True)


# Imported on a single value, which is what an input without a shape is read as.
_TAKES_A_SCALAR = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Mul",
        "Neg",
        "Relu",
        "Shape",
        "Sigmoid",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
    }
)


@rule(
    "SHAPE-MISSING",
    title="input without a shape",
    tensorrt="error",
    ort_cpu="note",
    refused=True,
    explanation="""The file does not even say how many axes the input has. NVIDIA's importer
    (TensorRT-RTX 1.7.1) takes it for a single value without axes: it refuses every operator that
    needs some (Conv: "The number of spatial dimensions and the kernel shape doesn't match up"), and
    imports Relu, Add and the like as an engine for one value. ONNX Runtime 1.31.1 runs the graph.""",
    remedy="""write the shape into the file (free sizes may have names), or export again with a
    sample input""",
)
def missing(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name, value in view.inputs.items():
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.HasField("shape"):
            continue
        reached, refused = {name}, False
        for node in view.nodes:
            if reached & set(node.input):
                if node.op_type not in _TAKES_A_SCALAR:
                    refused = True
                    break
                if not _gives_axes(view, node):
                    reached.update(node.output)
        yield Hit(name, f"the input {name!r} has no shape at all", refused=refused)


def _gives_axes(view: GraphView, node: NodeProto) -> bool:
    """Whether a constant beside the single value makes more of it, or its shape is all that is read."""
    shapes = [view.shape_of_constant(value) for value in node.input if view.is_constant(value)]
    return node.op_type == "Shape" or any(shapes)


@rule(
    "SHAPE-DYNAMIC",
    title="size that is known only while running",
    tensorrt="note",
    explanation="""TensorRT builds an engine with free sizes from an optimization profile:
    least, best and greatest size of each such input. Without one the build fails. Kernels are
    chosen for the best size; a CUDA graph must be captured again for each size that occurs.""",
    remedy="""give sizes when building (compress-deploy build makes a profile of the batch
    axis), or export fixed sizes""",
)
def dynamic(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name in view.inputs:
        shape = view.shape(name)
        free = [] if shape is None else [size for size in shape if not isinstance(size, int)]
        if free:
            assert shape is not None
            level: Level = (
                "warning" if any(not isinstance(size, int) for size in shape[1:]) else "note"
            )
            yield Hit(name, f"the input {name!r} has the shape {_shown(shape)}", level=level)


# Refused by ONNX's inference and by ONNX Runtime, and imported (TensorRT-RTX 1.7.1).
_IMPORTED = (
    ("Conv", "Attribute pads has incorrect size"),
    ("Conv", "Attribute strides has incorrect size"),
    ("Conv", "Number of spatial dimensions in the weight tensor"),
    ("Expand", ""),
    ("Split", "Mismatch between the sum"),
    ("Split", "Neither"),
)


@rule(
    "SHAPE-CONTRADICTION",
    title="sizes that do not fit together",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""A node cannot have these inputs or attributes: sizes that cannot be combined, an
    axis beyond the last one, strides of 0, scales of Resize left out. ONNX's shape inference finds
    most of them; kernel_shape, groups and bias of a Conv, Reshape, PRelu and DepthToSpace are looked
    at here. NVIDIA's importer refuses the graph ("broadcast dimensions must be conformable",
    TensorRT-RTX 1.7.1) but for Expand, Split, and lists of a Conv that are too short; ONNX Runtime
    refuses it when loading or in the first call. Usually channels were cut on one side only.""",
    remedy="look at the sizes that are named, and export again from a network that runs",
)
def contradiction(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    broken = {label(node) for node in view.all_nodes if [*misfits(node, view.opset)]}
    found = view.contradiction
    if found is not None and found.node not in broken and not _is_about_types(found.text):
        imported = any(
            found.op_type == op and found.text.startswith(text) for op, text in _IMPORTED
        )
        yield Hit(found.node, f"{found.op_type}: {found.text}", refused=not imported)
    for node, text in misfitting_sizes(view):
        if label(node) not in broken and (found is None or found.node != label(node)):
            yield Hit(label(node), f"{node.op_type}: {text}")


def _is_about_types(text: str) -> bool:
    return any(one in text for one in ("have type but", "Element type of input", "typestr"))


@rule(
    "SHAPE-NOT-INFERRED",
    title="shapes and types could not be inferred",
    tensorrt="note",
    ort_cpu="note",
    explanation="""ONNX's own shape inference gives up on this graph, so rules about shapes and
    types see only what the file declares. Custom operators, control flow and contradicting shapes
    do that.""",
    remedy="run onnx.shape_inference.infer_shapes with strict_mode=True to see where it stops",
)
def not_inferred(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if view.inferred is None:
        yield Hit("", "onnx.shape_inference cannot read this graph")
