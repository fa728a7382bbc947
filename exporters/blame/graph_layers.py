"""Which layer of the network does a node of a Q/DQ graph belong to?

A layer is a node with weights, named after the module whose weights it reads, or any other operation, named
after its node. What follows it up to and with its Q/DQ pair is its own: an unfolded BatchNormalization, a
ReLU, the pair. A pair behind the graph's input belongs to that input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporters.ort_fusion import WEIGHTED, SourceGraph

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FOLLOWS = QUANTIZERS | {
    "Relu",
    "Clip",
    "LeakyRelu",
    "HardSwish",
    "BatchNormalization",
    "Cast",
    "Identity",
}
_PARTS = (".q_OX", ".scale_O", ".bias_O", ".weight", ".bias", ".weight_quantized", "_quantized")


class GraphLayers:
    """The layers of ``model``; ``graph`` is its index."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.graph = SourceGraph(model)
        self._names: dict[str, str] = {}

    def of(self, node: NodeProto) -> str:
        """The name of the layer that ``node`` belongs to."""
        key = str(node.output[0])
        if key not in self._names:
            self._names[key] = self._find(node)
        return self._names[key]

    def weights_of(self, node: NodeProto) -> tuple[str, NodeProto | None]:
        """The constant that holds the weights of a weighted node, and its last DequantizeLinear."""
        value, last = node.input[1], None
        while value not in self.graph.constants:
            made_by = self.graph.producer.get(value)
            if made_by is None or made_by.op_type not in QUANTIZERS | {"Transpose", "Cast"}:
                return "", None
            last = last or (made_by if made_by.op_type == "DequantizeLinear" else None)
            value = made_by.input[0]
        return value, last

    def dequantized(self, node: NodeProto) -> np.ndarray | None:
        """What a DequantizeLinear of constants returns, in the type of its scale; None for others."""
        if any(value and value not in self.graph.constants for value in node.input):
            return None
        codes, scale = (self.graph.array(value) for value in node.input[:2])
        zero = self.graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else 0
        shape = [1] * codes.ndim
        if scale.size > 1:
            shape[next((a.i for a in node.attribute if a.name == "axis"), 1)] = -1
        steps = codes.astype(np.float32) - np.reshape(zero, shape if np.size(zero) > 1 else [])
        return np.asarray(steps * scale.astype(np.float32).reshape(shape)).astype(scale.dtype)

    def weighted(self) -> list[NodeProto]:
        return [node for node in self.model.graph.node if node.op_type in WEIGHTED]

    def first(self, node: NodeProto) -> bool:
        """Whether nothing but a Q/DQ pair or a change of layout stands between it and an input."""
        made_by = self.graph.producer.get(node.input[0])
        while made_by is not None and made_by.op_type in QUANTIZERS | {"Transpose", "Cast"}:
            made_by = self.graph.producer.get(made_by.input[0])
        return made_by is None

    def pairs(self) -> list[tuple[NodeProto, NodeProto]]:
        """(QuantizeLinear, DequantizeLinear) of activations, in order."""
        found = []
        for node in self.model.graph.node:
            made_by = self.graph.producer.get(node.input[0]) if node.input else None
            if (
                node.op_type == "DequantizeLinear"
                and made_by is not None
                and made_by.op_type == "QuantizeLinear"
                and made_by.input[0] not in self.graph.constants
            ):
                found.append((made_by, node))
        return found

    def _find(self, node: NodeProto) -> str:
        if node.op_type in WEIGHTED and len(node.input) > 1:
            return self._module(node) or _label(node)
        if node.op_type in QUANTIZERS and self.graph.is_constant(node):
            readers = [reader for output in node.output for reader in self.graph.readers[output]]
            return self.of(readers[0]) if readers else _label(node)
        if node.op_type in _FOLLOWS:
            made_by = self.graph.producer.get(node.input[0])
            return self.of(made_by) if made_by is not None else node.input[0]
        return _label(node)

    def _module(self, node: NodeProto) -> str:
        name, _ = self.weights_of(node)
        for part in _PARTS:
            if name.endswith(part):
                return name[: -len(part)]
        return ""


def _label(node: NodeProto) -> str:
    return str(node.name or node.output[0])
