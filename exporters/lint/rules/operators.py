"""Rules about operators: unknown ones, those without an importer, control flow."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.registry import Hit, rule
from exporters.lint.signatures import all_schemas, schema_of
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView, attributes_of, is_standard, label

CONTROL_FLOW = ("If", "Loop", "Scan")
# Answered UNSUPPORTED_NODE by the importer of TensorRT-RTX 1.7.1, each in a graph of its own (opset 22).
UNSUPPORTED = frozenset(
    {
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "Det",
        "DynamicQuantizeLinear",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
        # no importer at all: looked for among the plugins
        "BitCast",
        "CausalConvWithState",
        "CumProd",
        "DFT",
        "SwiGLU",
    }
)
# Imported as plugins, which the full TensorRT ships in a library and TensorRT-RTX does not.
PLUGINS = frozenset({"NonZero", "DeformConv"})
_INTEGER_FORMS = frozenset(
    {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"}
)
# Not in the standard, and known to the importer of TensorRT-RTX 1.7.1 in any domain.
_CONTRIB_KNOWN = frozenset(
    {"GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "SimplifiedLayerNormalization"}
)
# onnxruntime 1.31.1 has these in the standard domain, in opsets in which the standard has not.
_ORT_EARLIER = frozenset(
    {
        "LayerNormalization",
        "MeanVarianceNormalization",
        "SimplifiedLayerNormalization",
        "ThresholdedRelu",
    }
)
_ORT_LEGACY = frozenset({"Affine", "Crop", "DynamicSlice", "Scale"})


@rule(
    "OP-UNKNOWN",
    title="operator that is not in the ONNX standard",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""The standard domain has no operator of this name in the model's opset, so
    nothing should run it. NVIDIA's importer looks for a plugin of that name ("Plugin not found",
    TensorRT-RTX 1.7.1); ONNX Runtime does not load the file. Either the name is wrong, or the
    operator is newer than the opset that the file declares, or was removed before it. A few names
    are known to a target all the same, LayerNormalization before opset 17 to ONNX Runtime for one:
    a warning.""",
    remedy="export again with another opset, or write the operation with standard operators",
)
def unknown(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    from onnx import defs

    for node in view.all_nodes:
        if is_standard(node) and _known_anyway(node.op_type, view.opset, target):
            yield Hit(
                label(node),
                f"{node.op_type} is not in opset {view.opset}; this target has it all the same",
                level="warning",
                refused=False,
            )
        elif is_standard(node) and not defs.has(node.op_type):
            yield Hit(label(node), f"{node.op_type} is no operator of ONNX")
        elif is_standard(node) and _is_missing(node.op_type, view.opset):
            since = min(
                s.since_version
                for s in defs.get_all_schemas_with_history()
                if s.name == node.op_type
            )
            yield Hit(
                label(node),
                f"{node.op_type} exists from opset {since} on and the file declares {view.opset}",
                refused=False,
            )
        elif is_standard(node):
            schema = schema_of(node.op_type, view.opset)
            gone = schema is not None and schema.deprecated
            if gone and all_schemas(node.op_type)[-1].deprecated:
                yield Hit(
                    label(node),
                    f"{node.op_type} was removed in opset {schema.since_version} and the file declares "
                    f"{view.opset}",
                    level="warning" if target.is_tensorrt else None,
                    refused=False,
                )


def _known_anyway(op_type: str, opset: int, target: LintTarget) -> bool:
    """Whether the target has an operator that the standard does not have in this opset."""
    from onnx import defs

    if defs.has(op_type) and not _is_missing(op_type, opset):
        return False
    if target.is_tensorrt:
        return op_type in _CONTRIB_KNOWN
    return op_type in _ORT_EARLIER or (op_type in _ORT_LEGACY and opset < 10)


def _is_missing(op_type: str, opset: int) -> bool:
    from onnx import defs

    newest = defs.onnx_opset_version()
    return bool(opset) and not defs.has(op_type, max_inclusive_version=min(opset, newest))


@rule(
    "OP-CUSTOM",
    title="custom operator",
    tensorrt="error",
    ort_cpu="error",
    refused=True,
    explanation="""Operators outside the standard domain are found among plugins (TensorRT) or
    registered libraries (ONNX Runtime), which a bundle does not carry. NVIDIA's importer goes by
    the name and ignores the domain (TensorRT-RTX 1.7.1): an unknown name is refused for want of a
    plugin, and one that is also a standard operator's is imported as that operator, whatever it was
    meant to be. ONNX Runtime knows com.microsoft.""",
    remedy="""write it with standard operators, or ship the plugin and load it before the model
    yourself""",
)
def custom(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    from onnx import defs

    for node in view.all_nodes:
        if is_standard(node):
            continue
        if (
            node.domain in ("com.microsoft", "ai.onnx.ml", "com.microsoft.nchwc")
            and not target.is_tensorrt
        ):
            continue
        known = defs.has(node.op_type) and node.op_type not in UNSUPPORTED | PLUGINS
        accepted = target.is_tensorrt and (known or node.op_type in _CONTRIB_KNOWN)
        taken = ": the importer ignores the domain and takes it by its name" if accepted else ""
        yield Hit(
            label(node),
            f"{node.op_type} of domain {node.domain!r}{taken}",
            level="warning" if accepted and node.domain == "com.microsoft" else None,
            refused=not accepted,
        )


@rule(
    "OP-UNSUPPORTED",
    title="standard operator that TensorRT does not import",
    tensorrt="error",
    refused=True,
    explanation="""NVIDIA's importer answers UNSUPPORTED_NODE (every operator of the standard
    was tried with TensorRT-RTX 1.7.1, each in a graph of its own). Integer operators such as
    QLinearConv and ConvInteger are among them: TensorRT takes quantization as QuantizeLinear and
    DequantizeLinear only.""",
    remedy="write it with operators that import, or keep it outside the model",
)
def unsupported(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.all_nodes:
        if is_standard(node) and node.op_type in UNSUPPORTED:
            fix = None
            if node.op_type in _INTEGER_FORMS:
                fix = "quantize in QDQ format (quant_format=QuantFormat.QDQ, static, not dynamic)"
            yield Hit(label(node), f"{node.op_type} has no importer", remedy=fix)


@rule(
    "OP-PLUGIN",
    title="operator that needs a plugin library",
    tensorrt="warning",
    refused=True,
    explanation="""TensorRT imports this operator as a plugin out of its own plugin library,
    which must be loaded (initLibNvInferPlugins). TensorRT-RTX 1.7.1 has no such library and refuses
    the graph.""",
    remedy="load TensorRT's plugin library before parsing, or write it with other operators",
)
def plugin(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.all_nodes:
        if is_standard(node) and node.op_type in PLUGINS:
            yield Hit(label(node), f"{node.op_type} is a plugin")


@rule(
    "OP-CONTROL-FLOW",
    title="control flow",
    tensorrt="warning",
    ort_cpu="warning",
    explanation="""If, Loop and Scan are imported (TensorRT-RTX 1.7.1) and run, but nothing is
    fused across their border, shapes inside are mostly unknown, CUDA graphs cannot capture data-
    dependent ones, and the other rules here look at the main graph only. On a DLA there is no
    control flow.""",
    remedy="""trace the model for fixed sizes so that branches and loops are unrolled, or split
    it in two""",
)
def control_flow(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.all_nodes:
        if is_standard(node) and node.op_type in CONTROL_FLOW:
            yield Hit(label(node), f"{node.op_type} holds a graph of its own")


@rule(
    "OP-TRAINING",
    title="operator in training mode",
    tensorrt="error",
    ort_cpu="warning",
    refused=True,
    explanation="""A Dropout or BatchNormalization with training mode on computes something else
    in every call. NVIDIA's importer refuses both ("does not support the Dropout operator in
    training mode", TensorRT-RTX 1.7.1). The network was exported without eval().""",
    remedy="call model.eval() before the export",
)
def training(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    for node in view.of_type("Dropout", "BatchNormalization"):
        mode = attributes_of(node).get("training_mode", 0)
        if node.op_type == "Dropout" and view.opset < 12:
            mode = 0  # has no such input yet, and the importer reads none
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            given = view.array(node.input[2])
            mode = given is not None and bool(given.any())
        if mode:
            yield Hit(label(node), f"{node.op_type} is in training mode")
