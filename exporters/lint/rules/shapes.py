"""Rules about sizes: empty ones, and those that are known only while running."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.finding import Level
from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView


def _shown(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


@rule(
    "SHAPE-EMPTY",
    title="dimension of size zero",
    tensorrt="error",
    ort_cpu="error",
    explanation="""An input or output with a dimension of 0 holds no values. TensorRT-RTX 1.7.1
    parses and builds the graph, and ONNX Runtime 1.31.1 runs it: both give back nothing. It usually
    is a batch size of 0 at export.""",
    remedy="export with a batch of at least 1, or with a free batch axis",
)
def empty(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name in [*view.inputs, *(value.name for value in view.graph.output)]:
        shape = view.shape(name)
        if shape is not None and 0 in shape:
            yield Hit(name, f"{name!r} has the shape {_shown(shape)}")


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
        if shape is None:
            yield Hit(name, f"the input {name!r} has no shape at all", level="warning")
        elif free:
            assert shape is not None
            level: Level = (
                "warning" if any(not isinstance(size, int) for size in shape[1:]) else "note"
            )
            yield Hit(name, f"the input {name!r} has the shape {_shown(shape)}", level=level)


@rule(
    "SHAPE-CONTRADICTION",
    title="shapes that do not fit together",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""ONNX's shape inference finds that a node's inputs cannot be combined.
    NVIDIA's importer refuses the graph ("broadcast dimensions must be conformable", TensorRT-RTX
    1.7.1); ONNX Runtime refuses it when loading or in the first call. Usually channels were cut on
    one side only.""",
    remedy="look at the two shapes that are named, and export again from a network that runs",
)
def contradiction(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if view.contradiction:
        yield Hit("", view.contradiction)


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
