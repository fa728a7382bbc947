"""A graph as the rules look at it: who makes and reads a value, constants, types, shapes, Q/DQ grids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.lint.grid import Grid
from exporters.ort_fusion import SourceGraph

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Larger results of constant nodes are not worth computing: no scale is among them.
_LARGEST_FOLD = 1 << 16
# Between a constant and its DequantizeLinear: what changes no value.
_TRANSPARENT = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})
STANDARD_DOMAINS = ("", "ai.onnx")

_REFUSAL = re.compile(
    r"\(op_type:(\w+), node name: (.*?)\): (?:\[(?:Shape|Type)InferenceError\] )?(.*?)(?= \(op_type:|$)"
)


@dataclass(frozen=True)
class Refusal:
    """The first node that ONNX's inference refuses, and why."""

    op_type: str
    node: str
    text: str


class GraphView:
    """The main graph of a model, indexed.  Nodes inside control flow are in ``all_nodes`` only."""

    def __init__(
        self,
        model: ModelProto,
        external_files: tuple[str, ...] = (),
        external_tensors: frozenset[str] = frozenset(),
    ) -> None:
        import onnx

        self._onnx = onnx
        self.external_files = external_files
        self.external_tensors = external_tensors
        self.model = model
        self.graph = model.graph
        self.source = SourceGraph(model)
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.inputs = {
            value.name: value
            for value in model.graph.input
            if value.name not in self.source.constants
        }
        self._folded: dict[str, np.ndarray | None] = {}
        self._grids: dict[int, Grid] = {}

    # --- nodes and values

    @cached_property
    def all_nodes(self) -> list[NodeProto]:
        """Every node, those of subgraphs included."""

        def walk(nodes: Any) -> Iterator[NodeProto]:
            for node in nodes:
                yield node
                for attribute in node.attribute:
                    if attribute.HasField("g"):
                        yield from walk(attribute.g.node)
                    for graph in attribute.graphs:
                        yield from walk(graph.node)

        return list(walk(self.graph.node))

    @cached_property
    def cycle(self) -> tuple[NodeProto, ...]:
        """Nodes that wait for each other, values that their subgraphs read included; empty if none do."""
        return _cycle(self.graph)

    @cached_property
    def opsets(self) -> dict[str, int]:
        found = {entry.domain: entry.version for entry in self.model.opset_import}
        if "ai.onnx" in found:
            found.setdefault("", found["ai.onnx"])
        return found

    @property
    def opset(self) -> int:
        return self.opsets.get("", 0)

    def producer(self, value: str) -> NodeProto | None:
        return self.source.producer.get(value)

    def readers(self, value: str) -> list[NodeProto]:
        return self.source.readers.get(value, [])

    def is_output(self, value: str) -> bool:
        return value in self.source.outputs

    def sole_reader(self, value: str) -> NodeProto | None:
        """The only node that reads ``value``; None where there are more, none, or it leaves the graph."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and not self.is_output(value) else None

    def of_type(self, *op_types: str) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type in op_types and _is_known(node)]

    @cached_property
    def quantized(self) -> bool:
        return bool(self.of_type(QUANTIZE, DEQUANTIZE))

    # --- constants

    @cached_property
    def _constants(self) -> frozenset[str]:
        """Values known before any input is; in one pass, because nodes stand in order."""
        known = set(self.source.constants)
        for node in self.nodes:
            random = node.op_type.startswith("Random") or node.op_type == "Multinomial"
            control = any(attribute.HasField("g") for attribute in node.attribute)
            if not random and not control and all(not x or x in known for x in node.input):
                known.update(node.output)
        return frozenset(known)

    def is_constant(self, value: str) -> bool:
        """Whether the value is an initializer, or computed from such alone."""
        return value in self._constants

    def array(self, value: str) -> np.ndarray | None:
        """A constant's value, small constant nodes computed; None where it is not constant or large."""
        if value not in self._folded:
            self._folded[value] = self._fold(value)
        return self._folded[value]

    def _fold(self, value: str) -> np.ndarray | None:
        tensor = self.source.constants.get(value)
        if tensor is not None:
            return np.asarray(self._onnx.numpy_helper.to_array(tensor))
        made_by = self.producer(value)
        if made_by is None or not is_standard(made_by) or not self.is_constant(value):
            return None
        feeds = {name: self.array(name) for name in made_by.input if name}
        if any(array is None or array.size > _LARGEST_FOLD for array in feeds.values()):
            return None
        from onnx.reference import ReferenceEvaluator

        try:
            outputs = ReferenceEvaluator(made_by, opsets=self.opsets).run(None, feeds)
        except (
            ArithmeticError,
            LookupError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            return None  # what the reference cannot compute is no constant that a rule can look at
        return dict(zip(made_by.output, map(np.asarray, outputs), strict=True)).get(value)

    def shape_of_constant(self, value: str) -> tuple[int, ...] | None:
        tensor = self.source.constants.get(value)
        if tensor is not None:
            return tuple(tensor.dims)
        array = self.array(value)
        return None if array is None else array.shape

    # --- types and shapes

    @cached_property
    def _types(self) -> dict[str, Any]:
        values = [*self.graph.input, *self.graph.output, *self.graph.value_info]
        known = {value.name: value.type for value in values}
        if self.inferred is not None:
            graph = self.inferred.graph
            for value in (*graph.value_info, *graph.output):
                known[value.name] = value.type
        return known

    @cached_property
    def inferred(self) -> ModelProto | None:
        """The model with inferred shapes; None where ONNX's inference gives up on it."""
        try:
            return self._onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        except (ValueError, RuntimeError, self._onnx.shape_inference.InferenceError):
            return None

    @cached_property
    def contradiction(self) -> Refusal | None:
        """What strict shape inference says of sizes and attributes that no run could have."""
        found = self._refusal(check_type=False)
        ignored = found is None or "existing" in found.text or found.op_type == "Constant"
        return None if ignored else found

    @cached_property
    def type_conflict(self) -> Refusal | None:
        """What strict inference says of element types that an operator does not take or combine."""
        found = self._refusal(check_type=True)
        wrong = ("has unsupported type", "has inconsistent type", "existing elem type")
        return found if found is not None and any(one in found.text for one in wrong) else None

    def _refusal(self, *, check_type: bool) -> Refusal | None:
        try:
            self._onnx.shape_inference.infer_shapes(
                self.model, check_type=check_type, strict_mode=True
            )
        except (ValueError, RuntimeError, self._onnx.shape_inference.InferenceError) as error:
            found = _REFUSAL.search(" ".join(str(error).split()))
            # What stands inside a function or a subgraph is judged otherwise by the runtimes.
            if found is not None and "Inference error(s)" not in found[3]:
                return Refusal(found[1], found[2], found[3][:200])
        return None

    def dtype(self, value: str) -> str:
        """ONNX's name of the element type, e.g. ``float16``; empty where it is not known."""
        tensor = self.source.constants.get(value)
        if tensor is not None:
            number = tensor.data_type
        elif value in self._types and self._types[value].HasField("tensor_type"):
            number = self._types[value].tensor_type.elem_type
        else:
            return ""
        return self._onnx.TensorProto.DataType.Name(number).lower()

    def shape(self, value: str) -> tuple[int | str | None, ...] | None:
        """Sizes, names of symbolic sizes, None for unknown ones; None where the rank is not known."""
        if value in self.source.constants:
            return tuple(self.source.constants[value].dims)
        known = self._types.get(value)
        if known is None or not known.tensor_type.HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in known.tensor_type.shape.dim
        )

    # --- quantizers

    def grid(self, node: NodeProto) -> Grid:
        """Of a QuantizeLinear or DequantizeLinear."""
        key = id(node)
        if key not in self._grids:
            self._grids[key] = self._read_grid(node)
        return self._grids[key]

    def _read_grid(self, node: NodeProto) -> Grid:
        attributes = attributes_of(node)
        has_zero = len(node.input) > 2 and bool(node.input[2])
        zero = self.array(node.input[2]) if has_zero else None
        if has_zero:
            dtype = self.dtype(node.input[2]) or ("" if zero is None else str(zero.dtype))
        elif node.op_type == DEQUANTIZE:
            dtype = self._code_dtype(node.input[0])
        else:
            number = attributes.get("output_dtype", 0) or self._onnx.TensorProto.UINT8
            dtype = self._onnx.TensorProto.DataType.Name(number).lower()
        return Grid(
            self.array(node.input[1]),
            zero,
            not has_zero or self.is_constant(node.input[2]),
            dtype,
            attributes.get("axis", 1),
            attributes.get("block_size", 0),
        )

    def _code_dtype(self, value: str) -> str:
        made_by = self.producer(value)
        if made_by is not None and made_by.op_type == QUANTIZE:
            return self.grid(made_by).dtype
        return self.dtype(value)

    def grid_nodes(self) -> Iterator[NodeProto]:
        """Every Q, and every DQ whose grid is not that of the Q before it: each grid once."""
        for node in self.of_type(QUANTIZE, DEQUANTIZE):
            before = self.producer(node.input[0]) if node.op_type == DEQUANTIZE else None
            repeated = (
                before is not None
                and before.op_type == QUANTIZE
                and (
                    node.input[1:] == before.input[1:]
                    or self.grid(node).same_as(self.grid(before)) is True
                )
            )
            if not repeated:
                yield node

    def is_weight(self, node: NodeProto) -> bool:
        """Whether a Q or DQ works on a constant: a weight or a bias, not an activation."""
        return self.is_constant(node.input[0])

    def weight_dequantizer(self, value: str) -> NodeProto | None:
        """The DQ of constant codes that ``value`` comes from, through transposes and reshapes."""
        made_by = self.producer(value)
        while made_by is not None and made_by.op_type in _TRANSPARENT:
            made_by = self.producer(made_by.input[0])
        if made_by is not None and made_by.op_type == DEQUANTIZE and self.is_weight(made_by):
            return made_by
        return None

    def dequantizer(self, value: str) -> NodeProto | None:
        """The DQ that makes ``value`` itself."""
        made_by = self.producer(value)
        return made_by if made_by is not None and made_by.op_type == DEQUANTIZE else None

    def is_activation(self, value: str) -> bool:
        return bool(value) and not self.is_constant(value)


def _read_by(node: NodeProto) -> set[str]:
    """Names that a node reads, in its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = [_read_by(inner) for inner in graph.node]
            made = {value for inner in graph.node for value in inner.output}
            made |= {value.name for value in (*graph.input, *graph.initializer)}
            names |= set().union(*inside, {value.name for value in graph.output}) - made
    return names - {""}


def _cycle(graph: GraphProto) -> tuple[NodeProto, ...]:
    nodes = list(graph.node)
    maker = {value: place for place, node in enumerate(nodes) for value in node.output if value}
    waits = [{maker[value] for value in _read_by(node) if value in maker} for node in nodes]
    readers: dict[int, list[int]] = {}
    for place, before in enumerate(waits):
        for one in before:
            readers.setdefault(one, []).append(place)
    ready = [place for place, before in enumerate(waits) if not before]
    while ready:
        done = ready.pop()
        for place in readers.get(done, []):
            waits[place].discard(done)
            if not waits[place]:
                ready.append(place)
    stuck = {place: before for place, before in enumerate(waits) if before}
    if stuck:
        # Each of them waits for another one: going back long enough ends in the cycle itself.
        walked: list[int] = []
        place = min(stuck)
        while place not in walked:
            walked.append(place)
            place = min(stuck[place])
        return tuple(nodes[one] for one in sorted(walked[walked.index(place) :]))
    for node in nodes:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found = _cycle(inner)
                if found:
                    return found
    return ()


def is_standard(node: NodeProto) -> bool:
    return node.domain in STANDARD_DOMAINS


def _is_known(node: NodeProto) -> bool:
    # ONNX Runtime's tools write Q/DQ of 16 bits in their own domain.
    return is_standard(node) or (
        node.domain == "com.microsoft" and node.op_type in (QUANTIZE, DEQUANTIZE)
    )


def label(node: NodeProto) -> str:
    """The node's name, or that of its first output: names are optional in ONNX."""
    return node.name or next(iter(node.output), "") or node.op_type


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Integers, floats, strings and lists of them; graphs and tensors are left out.

    So are attributes of another type than the operator's: whoever reads them counts on that type.
    """
    from onnx import AttributeProto, defs, helper

    known: Any = defs.get_schema(node.op_type).attributes if defs.has(node.op_type) else {}

    plain = (
        AttributeProto.INT,
        AttributeProto.INTS,
        AttributeProto.FLOAT,
        AttributeProto.FLOATS,
        AttributeProto.STRING,
    )
    return {
        attribute.name: helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if attribute.type in plain
        and not attribute.ref_attr_name
        and (attribute.name not in known or attribute.type == known[attribute.name].type.value)
    }
