"""Rules about the file as a whole: opset, validity, data in other files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from exporters.lint.registry import Hit, rule
from exporters.lint.target import LintTarget
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, label

# onnxruntime 1.31.1 loads files up to here.
_ORT_IR = 13


@rule(
    "FILE-OPSET",
    title="opset outside what the target is documented for",
    tensorrt="error",
    ort_cpu="error",
    explanation="""Every TensorRT version has a range of opsets that its importer is made for:
    up to 13 in 8.0, 17 in 8.5 and 8.6, 19 in 9.2, 20 in 10.0 (JetPack 6 has 10.3), 24 in 10.15, 25
    in 11.x, from 9 on since 10.0 and 7 on before (headings of onnx-tensorrt's docs/operators.md;
    NVIDIA's ONNX Opset Guide). The importer does not look at the number itself: TensorRT-RTX 1.7.1
    took small graphs of 7 to 27, and fails at, or misreads, an operator that changed. Between the
    documented limits of two versions this is a warning. ONNX Runtime 1.31.1 loads 7 to 26 and
    refuses others. QuantizeLinear exists from opset 10, with one scale per channel from 13.""",
    remedy="""export with an opset in the range, or convert with onnx.version_converter; 18
    works everywhere but in TensorRT 8""",
)
def opset(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    given, low, high = view.opset, target.least_opset, target.documented_opset
    accepted = f"{target} is documented for {low} to {high}"
    if not given:
        yield Hit("", "the file declares no opset of the standard domain")
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
    if view.model.ir_version > _ORT_IR:
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
    1.7.1) and ONNX Runtime does not load it. A pass that deleted or copied a node left this behind.""",
    remedy="run onnx.checker.check_model after each pass that edits a graph, and export again",
)
def broken(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    made = [*view.inputs, *(tensor.name for tensor in view.graph.initializer)]
    made += [tensor.values.name for tensor in view.graph.sparse_initializer]
    made += [value for node in view.nodes for value in node.output if value]
    for value, times in Counter(made).items():
        if times > 1:
            yield Hit(value, f"{value!r} is made {times} times")
    known = set(made)
    for node in view.nodes:
        for value in node.input:
            if value and value not in known:
                yield Hit(label(node), f"nothing makes its input {value!r}")
    for output in view.graph.output:
        if output.name not in known:
            yield Hit(output.name, f"nothing makes the output {output.name!r}")


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
    later = {value for node in view.nodes for value in node.output}
    for node in view.nodes:
        early = [value for value in node.input if value in later]
        if early:
            yield Hit(label(node), f"it reads {early[0]!r}, which is made further down")
        later.difference_update(node.output)
