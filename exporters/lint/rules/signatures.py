"""Rules about nodes that are not as their operator is in the file's opset."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.registry import Hit, rule
from exporters.lint.signatures import Kind, misfits
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView, attributes_of, is_standard, label

_REMEDY = """declare the opset that the nodes were written for (model.opset_import), let
    onnx.version_converter change the opset, or export again"""


def _hits(view: GraphView, target: LintTarget, kind: Kind) -> Iterator[Hit]:
    for node in view.all_nodes:
        if node.op_type == "Constant" and not target.is_tensorrt and node.attribute:
            continue  # ONNX Runtime makes initializers of them before it looks at opsets
        for misfit in misfits(node, view.opset):
            if misfit.kind == kind:
                yield Hit(
                    label(node),
                    f"{node.op_type} of opset {view.opset} has {misfit.text}",
                    level="warning" if misfit.ignored and target.is_tensorrt else None,
                    refused=misfit.refused,
                )


@rule(
    "OP-INPUTS",
    title="more or fewer inputs or outputs than the operator has in this opset",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""Operators change between opsets: axes of Squeeze, pads of Pad and limits of Clip
    were attributes and became inputs. ONNX Runtime 1.31.1 holds each node against the opset that
    the file declares and does not load it otherwise. NVIDIA's importer (TensorRT-RTX 1.7.1) ignores
    inputs after those that most operators know, which is a warning; it refuses too few inputs, and
    outputs that the operator does not have. Usually somebody wrote another opset into the file.""",
    remedy=_REMEDY,
)
def inputs(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    yield from _hits(view, target, "inputs")


@rule(
    "OP-ATTRIBUTES",
    title="attributes that the operator does not have in this opset",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""Every opset says which attributes an operator has, of which type, and which it
    needs. ONNX Runtime 1.31.1 does not load a file whose nodes have others. NVIDIA's importer
    (TensorRT-RTX 1.7.1) ignores attributes that it does not know, which is a warning; it refuses a
    node that lacks one it needs, and reads one of another type as 0 or as empty, which it refuses
    or computes with. Usually somebody wrote another opset into the file.""",
    remedy=_REMEDY,
)
def attributes(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    yield from _hits(view, target, "attributes")


# Their first output alone is imported.
_ONE_OUTPUT = frozenset({"BatchNormalization", "LayerNormalization", "MaxPool"})
# ONNX allows "" for an optional input that is left out at the end; the importer refuses it here.
_NO_GAPS = frozenset(
    {"Conv", "DequantizeLinear", "Gemm", "QuantizeLinear", "Slice", "Split", "Squeeze"}
)


@rule(
    "OP-FORM",
    title="form of an operator that the target does not take",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""Each is legal ONNX. NVIDIA's importer (TensorRT-RTX 1.7.1) takes no second output
    of MaxPool, BatchNormalization and LayerNormalization, no Resize with antialias, no Constant of
    text, and no empty name in place of an optional last input of Conv, Gemm, Slice, Split, Squeeze,
    QuantizeLinear and DequantizeLinear. ONNX Runtime 1.31.1 crashes (SIGSEGV) on a
    LayerNormalization whose bias is an empty name, and refuses a Split with an empty name.""",
    remedy="leave empty names and unused outputs out, or write it with other operators",
)
def form(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.all_nodes:
        if not is_standard(node):
            continue
        gap = len(node.input) > 1 and not node.input[-1]
        if not target.is_tensorrt:
            if gap and node.op_type in ("LayerNormalization", "Split"):
                yield Hit(label(node), f"{node.op_type} with an empty name as its last input")
            continue
        given = attributes_of(node)
        trained = bool(given.get("training_mode", 0))  # refused by another rule
        if node.op_type in _ONE_OUTPUT and any(node.output[1:]) and not trained:
            yield Hit(label(node), f"{node.op_type} with {len(node.output)} outputs")
        if node.op_type == "Resize" and given.get("antialias", 0):
            yield Hit(label(node), "Resize with antialias")
        if node.op_type == "Constant" and {"value_string", "value_strings"} & set(given):
            yield Hit(label(node), "Constant of text")
        if gap and (
            node.op_type in _NO_GAPS or (node.op_type == "Dropout" and len(node.input) > 2)
        ):
            yield Hit(label(node), f"{node.op_type} with an empty name as its last input")
