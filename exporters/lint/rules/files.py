"""Rules about the file as a whole: opset, validity, data in other files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporters.lint.finding import Level
from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, label

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

# onnxruntime 1.31.1 loads files up to here.
_ORT_IR = 13
# "Pre-opset 7 broadcasting is unsupported in this version of the ONNX parser" (TensorRT-RTX 1.7.1)
_BROADCASTING_FROM = 7
_BROADCASTS = (
    "Add",
    "And",
    "Div",
    "Equal",
    "Gemm",
    "Greater",
    "Less",
    "MatMul",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Xor",
)


@rule(
    "FILE-OPSET",
    title="opset outside what the target is documented for",
    tensorrt="error",
    ort_cpu="error",
    explanation="""Every TensorRT version has a range of opsets that its importer is made for:
    up to 13 in 8.0, 17 in 8.5 and 8.6, 19 in 9.2, 20 in 10.0 (JetPack 6 has 10.3), 24 in 10.15, 25
    in 11.x, from 9 on since 10.0 and 7 on before (headings of onnx-tensorrt's docs/operators.md;
    NVIDIA's ONNX Opset Guide). That of TensorRT-RTX 1.7.1 refuses Add, MatMul and other operators
    of two values before opset 7 and does not look at the number otherwise: it took small graphs of
    7 to 27, and fails at, or misreads, an operator that changed. Between the
    documented limits of two versions this is a warning. ONNX Runtime 1.31.1 loads 7 to 26 and
    refuses others. QuantizeLinear exists from opset 10, with one scale per channel from 13.""",
    remedy="""export with an opset in the range, or convert with onnx.version_converter; 18
    works everywhere but in TensorRT 8""",
)
def opset(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    given, low, high = view.opset, target.least_opset, target.documented_opset
    accepted = f"{target} is documented for {low} to {high}"
    if given < _BROADCASTING_FROM:
        refused = bool(view.of_type(*_BROADCASTS))
        declared = (
            f"opset {given}" if given else "the file declares no opset of the standard domain"
        )
        yield Hit("", f"{declared}; {accepted}", refused=refused)
    elif given > target.possible_opset or given < low:
        yield Hit("", f"opset {given}; {accepted}")
    elif given > high:
        yield Hit(
            "",
            f"opset {given}; {accepted}, a later one up to {target.possible_opset}",
            level="warning",
        )
    elif given < 10 and view.of_type(QUANTIZE, DEQUANTIZE):
        yield Hit("", f"opset {given} has no QuantizeLinear; it exists from 10 on")
    elif given < 13 and any(
        view.grid(node).per_channel for node in view.of_type(QUANTIZE, DEQUANTIZE)
    ):
        yield Hit("", f"opset {given} has no scales per channel; they exist from 13 on")


@rule(
    "FILE-IR-VERSION",
    title="newer file format than the runtime reads",
    ort_cpu="error",
    explanation="""onnxruntime 1.31.1 reads files up to IR version 13 and refuses later ones;
    the number comes from the onnx package that wrote the file. NVIDIA's importer does not look at
    it.""",
    remedy="""write the file with onnx.helper.make_model(..., ir_version=10), or set
    model.ir_version = 10""",
)
def ir_version(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if not view.model.ir_version:
        yield Hit("", "the file declares no IR version; accepted is 3 or more")
    elif view.model.ir_version > _ORT_IR:
        yield Hit("", f"IR version {view.model.ir_version}; accepted is up to {_ORT_IR}")


@rule(
    "FILE-EXTERNAL-DATA",
    title="weights in another file",
    tensorrt="warning",
    ort_cpu="note",
    explanation="""The model is two files that must travel together. NVIDIA's importer finds the
    second one only when it is given a path, not bytes ("cannot open", TensorRT-RTX 1.7.1). torch's
    exporter does this by default, even for small models.""",
    remedy="""export with external_data=False (up to 2 GB), or onnx.save(onnx.load(path), path)
    into one file""",
)
def external_data(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if view.external_files:
        yield Hit("", f"weights lie in {', '.join(view.external_files)}")


@rule(
    "FILE-BROKEN",
    title="values that nobody makes, or two nodes make",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""In a graph every value has one maker: an input, an initializer or one node.
    NVIDIA's importer refuses what has none or two ("Node input was not registered", TensorRT-RTX
    1.7.1), inputs and outputs without an element type and a graph without outputs; ONNX Runtime
    does not load it, but takes the last of two initializers and no outputs. A pass that deleted or
    copied a node left this behind.""",
    remedy="run onnx.checker.check_model after each pass that edits a graph, and export again",
)
def broken(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    stored = [tensor.name for tensor in view.graph.initializer]
    stored += [tensor.values.name for tensor in view.graph.sparse_initializer]
    for value, times in Counter(stored).items():
        if times > 1:  # ONNX Runtime takes the last one
            level: Level = "error" if target.is_tensorrt else "warning"
            yield Hit(value, f"the initializer {value!r} is there {times} times", level=level)
    made = [*set(stored), *(one.name for one in view.graph.input if one.name not in set(stored))]
    made += [value for node in view.nodes for value in node.output if value]
    for value, times in Counter(made).items():
        if times > 1:
            yield Hit(value, f"{value!r} is made {times} times")
    known = set(made)
    for node, value in _unmade(view.graph, known):
        yield Hit(label(node), f"nothing makes its input {value!r}")
    for one in (*view.graph.input, *view.graph.output):
        if one.type.HasField("tensor_type") and not one.type.tensor_type.elem_type:
            yield Hit(one.name, f"{one.name!r} has no element type")
    if not view.graph.output:  # ONNX Runtime loads it and computes nothing
        level = "error" if target.is_tensorrt else "warning"
        yield Hit("", "the graph has no outputs", level=level)
    for output in view.graph.output:
        if output.name not in known:
            yield Hit(output.name, f"nothing makes the output {output.name!r}")


def _unmade(graph: GraphProto, known: set[str]) -> Iterator[tuple[NodeProto, str]]:
    """Nodes with a value that they read and nothing makes, neither here nor around the graph."""
    for node in graph.node:
        for value in node.input:
            if value and value not in known:
                yield node, value
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                made = {one.name for one in (*inner.input, *inner.initializer)}
                made |= {value for one in inner.node for value in one.output}
                yield from _unmade(inner, known | made)


@rule(
    "FILE-NAMES",
    title="two nodes of one name",
    ort_cpu="error",
    explanation="""ONNX Runtime 1.31.1 does not load a graph in which two nodes have the same name;
    no name at all is allowed any number of times. NVIDIA's importer takes it (TensorRT-RTX 1.7.1).
    A pass that copied a node left this behind.""",
    remedy="""give each node a name of its own, or none: for node in model.graph.node:
    node.ClearField("name")""",
)
def names(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for name, times in Counter(node.name for node in view.nodes if node.name).items():
        if times > 1:
            yield Hit(name, f"{times} nodes have the name {name!r}")


@rule(
    "FILE-CYCLE",
    title="nodes that wait for each other",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""A node reads, perhaps by way of others, what it makes itself: no order of the
    nodes can compute that. NVIDIA's importer refuses it ("Failed to sort the model topologically",
    TensorRT-RTX 1.7.1), and ONNX Runtime 1.31.1 too ("the graph is not acyclic"). A pass that
    renamed values left this behind. Rules about values are not applied to such a graph.""",
    remedy="""look at the nodes that are named, and export again; run onnx.checker.check_model after
    each pass that edits a graph""",
)
def cycle(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    nodes = [label(node) for node in view.cycle]
    if nodes:
        more = f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""
        names = ", ".join(map(repr, nodes[:4])) + more
        waits = "waits for itself" if len(nodes) == 1 else "wait for each other"
        yield Hit(nodes[0], f"{names} {waits}")


@rule(
    "FILE-ORDER",
    title="nodes that stand before those they read from",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""ONNX wants nodes in an order in which each reads what was made above it, and
    its checker refuses others. NVIDIA's importer and ONNX Runtime sort the graph (TensorRT-RTX
    1.7.1, onnxruntime 1.31.1); the rules here see constants only in a sorted one.""",
    remedy="sort the nodes, or export again",
)
def order(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    if view.cycle:
        return
    later = {value for node in view.nodes for value in node.output}
    for node in view.nodes:
        early = [value for value in node.input if value in later]
        if early:
            yield Hit(label(node), f"it reads {early[0]!r}, which is made further down")
        later.difference_update(node.output)
