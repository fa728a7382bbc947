"""What an operator takes in the opset that a file declares: inputs, outputs and attributes.

Asked of ONNX's own schemas.  What NVIDIA's importer makes of a node that is otherwise was tried with
TensorRT-RTX 1.7.1: 146 operators of the standard, one fault at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from exporters.lint.view import is_standard

if TYPE_CHECKING:
    from onnx import NodeProto

Kind = Literal["inputs", "attributes"]
# Imported with their first input alone.
_ONE_INPUT_DOES = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Sub", "Xor"}
)
# Other operators ignore inputs that come after those they know.
_COUNTS_INPUTS = frozenset(
    {
        "Equal",
        "Greater",
        "GridSample",
        "Less",
        "NonMaxSuppression",
        "PRelu",
        "Pow",
        "Resize",
        "ReverseSequence",
        "Slice",
        "TopK",
        "Unsqueeze",
        "Upsample",
    }
)
# An attribute of another type is read as 0, as empty, or as nothing; these attributes cannot be that.
_NEVER_EMPTY = frozenset(
    {
        "activations",
        "approximate",
        "batch_axis",
        "blocksize",
        "coordinate_transformation_mode",
        "direction",
        "dtype",
        "equation",
        "fmod",
        "group",
        "hidden_size",
        "keep_aspect_ratio_policy",
        "kernel_shape",
        "num_groups",
        "num_heads",
        "num_scan_inputs",
        "output_datatype",
        "output_shape",
        "p",
        "reduction",
        "size",
        "softmax_precision",
        "time_axis",
        "to",
        "value",
    }
)
_MODES_NEVER_EMPTY = frozenset({"GridSample", "Pad", "Resize", "TensorScatter", "Upsample"})
# Words that the schemas leave open, and both runtimes do not.
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "auto_pad": {"": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")},
    "mode": {"Resize": ("nearest", "linear", "cubic"), "Upsample": ("nearest", "linear")},
}


@dataclass(frozen=True)
class Misfit:
    """One thing that is not as the operator has it in this opset.

    ``ignored``: the importer reads the node as if this were not there.  ``refused``: it does not take it.
    ``beyond_the_schema``: ONNX's checker of a node does not look at it, and the runtimes do.
    """

    kind: Kind
    text: str
    ignored: bool = False
    refused: bool = False
    beyond_the_schema: bool = False


@lru_cache(maxsize=4096)
def schema_of(op_type: str, opset: int) -> Any:
    """ONNX's schema of a standard operator in ``opset``; None where it has none."""
    from onnx import defs

    if opset <= 0 or not defs.has(op_type):
        return None
    newest = min(opset, defs.onnx_opset_version())
    if not defs.has(op_type, max_inclusive_version=newest):
        return None
    return defs.get_schema(op_type, max_inclusive_version=newest)


@lru_cache(maxsize=1024)
def all_schemas(op_type: str) -> tuple[Any, ...]:
    """A standard operator's schemas, the oldest first."""
    from onnx import defs

    found, version = [], defs.onnx_opset_version()
    while version and defs.has(op_type, max_inclusive_version=version):
        schema = defs.get_schema(op_type, max_inclusive_version=version)
        found.append(schema)
        version = schema.since_version - 1
    return tuple(reversed(found))


def misfits(node: NodeProto, opset: int) -> Iterator[Misfit]:
    """What of ``node`` is not as its operator has it in ``opset``; nothing for operators without a schema."""
    schema = schema_of(node.op_type, opset) if is_standard(node) else None
    if schema is None:
        return
    found = [*_of_inputs(node, schema), *_of_outputs(node, schema), *_of_attributes(node, schema)]
    if not found and not schema.deprecated:
        found += _of_checker(node, opset)
    yield from found


def _of_inputs(node: NodeProto, schema: Any) -> Iterator[Misfit]:
    given = len(node.input)
    accepted = _range(schema.min_input, schema.max_input)
    if given < schema.min_input:
        optional_once = (
            (node.op_type in _ONE_INPUT_DOES and given == 1)
            or (node.op_type == "Gemm" and given == 2)
            or (node.op_type == "Unsqueeze" and any(one.name == "axes" for one in node.attribute))
        )
        yield Misfit(
            "inputs",
            f"{_counted(given, 'input')}; accepted is {accepted}",
            refused=not optional_once,
        )
    elif given > schema.max_input:
        crashes = node.op_type == "Clip" and (given > 4 or not node.input[-1])
        refused = node.op_type in _COUNTS_INPUTS or crashes
        yield Misfit(
            "inputs",
            f"{_counted(given, 'input')}; accepted is {accepted}",
            ignored=not refused,
            refused=refused,
        )
    for place, (value, formal) in enumerate(zip(node.input, schema.inputs, strict=False)):
        if not value and formal.option == type(formal.option).Single:
            yield Misfit("inputs", f"no input {place}, {formal.name!r}", refused=True)


def _of_outputs(node: NodeProto, schema: Any) -> Iterator[Misfit]:
    given = len(node.output)
    if not schema.min_output <= given <= schema.max_output:
        accepted = _range(schema.min_output, schema.max_output)
        text = f"{_counted(given, 'output')}; accepted is {accepted}"
        yield Misfit("inputs", text, refused=True)
    for place, (value, formal) in enumerate(zip(node.output, schema.outputs, strict=False)):
        if not value and formal.option == type(formal.option).Single:
            yield Misfit("inputs", f"no name for its output {place}", refused=True)


def _of_attributes(node: NodeProto, schema: Any) -> Iterator[Misfit]:
    seen = set()
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if attribute.name in seen:
            yield Misfit("attributes", f"the attribute {attribute.name!r} twice", ignored=True)
        elif known is None:
            text = f"the attribute {attribute.name!r}, {_when(node.op_type, attribute.name)}"
            yield Misfit("attributes", text, ignored=True)
        elif attribute.type and not attribute.ref_attr_name and attribute.type != known.type.value:
            yield Misfit(
                "attributes",
                f"{attribute.name!r} as {_type_name(attribute.type)}; accepted is {known.type.name}",
                refused=attribute.name in _NEVER_EMPTY
                or known.type.name not in ("FLOAT", "FLOATS", "INT", "INTS", "STRING")
                or (attribute.name == "mode" and node.op_type in _MODES_NEVER_EMPTY),
            )
        elif attribute.name in _WORDS:
            yield from _of_word(node.op_type, attribute.name, attribute.s)
        seen.add(attribute.name)
    for name, known in schema.attributes.items():
        if known.required and name not in seen:
            yield Misfit(
                "attributes",
                f"no attribute {name!r}, which the operator needs",
                refused=(node.op_type, name) != ("GroupNormalization", "num_groups"),
            )
    if node.op_type == "Constant" and not seen & set(schema.attributes):
        text = "no value that a Constant of this opset has"
        yield Misfit("attributes", text, refused=True, beyond_the_schema=True)


def _of_word(op_type: str, name: str, word: bytes) -> Iterator[Misfit]:
    accepted = _WORDS[name].get(op_type, _WORDS[name].get("", ()))
    given = word.decode(errors="replace")
    if accepted and given not in accepted:
        text = f"{name!r} {given!r}; accepted is {', '.join(accepted)}"
        ignored = name == "auto_pad"
        yield Misfit("attributes", text, ignored, refused=not ignored, beyond_the_schema=True)


def _of_checker(node: NodeProto, opset: int) -> Iterator[Misfit]:
    """What ONNX's own checker of a node says, which ONNX Runtime has too; in its words."""
    from onnx import AttributeProto, NodeProto, checker, defs

    holders = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    if any(attribute.type in holders for attribute in node.attribute):
        return  # would be checked without the values around it
    context = checker.C.CheckerContext()
    context.ir_version = checker.DEFAULT_CONTEXT.ir_version
    newest = min(opset, defs.onnx_opset_version())
    context.opset_imports = {"": newest}
    plain = NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    try:
        checker.check_node(plain, context)
    except checker.ValidationError as error:
        text = " ".join(str(error).split("==>")[0].split())
        yield Misfit("attributes", f"what ONNX's checker refuses ({text[:160]})", ignored=True)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _range(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"{low} or more" if high > 1000 else f"{low} to {high}"


def _type_name(number: int) -> str:
    from onnx import AttributeProto

    known = {value: name for name, value in AttributeProto.AttributeType.items()}
    return known.get(number, f"type {number}")


def _when(op_type: str, name: str) -> str:
    """In which opsets the operator has the attribute, in words."""
    schemas = all_schemas(op_type)
    having = [place for place, schema in enumerate(schemas) if name in schema.attributes]
    if not having:
        return "which the operator never had"
    since = schemas[having[0]].since_version
    until = schemas[having[-1] + 1].since_version - 1 if having[-1] + 1 < len(schemas) else None
    if until is None:
        return f"which the operator has from opset {since} on"
    return f"which the operator has in opsets {since} to {until}"
