"""Why ONNX Runtime left a layer of a Q/DQ graph in float.

What fits was measured with onnxruntime 1.31 on x86-64 and is held by this module's tests:

* A weighted layer becomes an integer kernel when its input comes from DequantizeLinear and its
  output is read by exactly one QuantizeLinear.  Two Q's, or a Q and a float reader: float.
* Between layer and Q a ReLU is absorbed when code 0 of the Q is the value 0 (uint8 with zero point
  0, int8 with -128); a Clip when Q's range lies inside it.  BatchNormalization, HardSwish and
  the like are not.
* A residual Add becomes QLinearAdd when both inputs are dequantized, whatever their zero points;
  uint8 beside int8 works on x86-64, where int8 activations are rewritten to uint8 first.
* Pad, ReduceMean, HardSwish and ConvTranspose have no integer kernel.  Slice, Reshape, Transpose and
  MaxPool move codes; so does Flatten, but a Gemm after it stays float unless a Q/DQ pair stands
  between.
* A Gemm needs the zero points of its input and of its weights written out; a Conv does not.
* Float weights between DQ and Q are quantized by ONNX Runtime itself, per tensor.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}
NO_KERNEL = frozenset({"ConvTranspose", "HardSwish", "Pad", "ReduceMean", "Softmax"})
# Layers without weights that have an integer kernel too, and ReduceMean and Pad, which should be
# written as something that has one.
UNWEIGHTED = frozenset(
    {
        "Add",
        "Mul",
        "Concat",
        "GlobalAveragePool",
        "AveragePool",
        "Sigmoid",
        "ReduceMean",
        "Pad",
        "HardSwish",
        "Softmax",
        "LeakyRelu",
    }
)
_MOVES_CODES = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity"}
)
_ABSORBABLE = frozenset({"Relu", "Clip", "BatchNormalization"})
_INSTEAD = {
    "ReduceMean": ": write GlobalAveragePool",
    "Pad": ": write a 1x1 convolution that selects channels",
    "HardSwish": ": replace the activation or leave the layer in float on purpose",
    "Add": ": both inputs of an Add need a Q/DQ pair",
}


class SourceGraph:
    """A graph, indexed: who makes a value, who reads it, which values are constants."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        self._array = numpy_helper.to_array
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.producer: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for output in node.output:
                self.producer[output] = node
            for source in node.input:
                self.readers[source].append(node)
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t

    def array(self, value: str) -> np.ndarray:
        """The value of a constant."""
        return np.asarray(self._array(self.constants[value]))

    def is_constant(self, node: NodeProto) -> bool:
        """Whether all that the node depends on are constants; in a loop, because networks are deep."""
        waiting, seen = [node], set[str]()
        while waiting:
            for source in waiting.pop().input:
                if not source or source in self.constants or source in seen:
                    continue
                if source not in self.producer:
                    return False
                seen.add(source)
                waiting.append(self.producer[source])
        return True

    def touches_quantizer(self, node: NodeProto) -> bool:
        """Whether the node stands between integers: a DQ before it or a Q after it."""
        return any(
            reader.op_type == "QuantizeLinear" for reader in self.readers[node.output[0]]
        ) or any(self._dequantized(source) for source in node.input)

    def why_float(self, node: NodeProto) -> str:
        """The reason in words; every phrase names the node or value to look at."""
        if node.op_type in NO_KERNEL:
            return f"{node.op_type} has no integer kernel{_INSTEAD.get(node.op_type, '')}"
        data = node.input[:1] if node.op_type in CONVOLUTIONS | {"Gemm"} else node.input
        for source in data:
            if source and source not in self.constants and not self._dequantized(source):
                return f"its input {source!r} is not quantized: {self._origin(source)}"
        if node.op_type in WEIGHTED:
            weight = node.input[1]
            made_by = self.producer.get(weight)
            if weight not in self.constants and (
                made_by is None or made_by.op_type != "DequantizeLinear"
            ):
                return f"its weights {weight!r} are computed in float"
        if node.op_type == "Gemm":
            for made_by in map(self._dequantizer, node.input[:2]):
                if made_by is not None and len(made_by.input) < 3:
                    return (
                        f"DequantizeLinear {_label(made_by)} has no zero point: "
                        "write it, a Gemm is not fused without"
                    )
        return self._why_output(node)

    def _origin(self, value: str) -> str:
        made_by = self.producer.get(value)
        if made_by is None:
            return "it is the graph's input, and no Q/DQ pair follows it"
        return f"{made_by.op_type} {_label(made_by)} has no Q/DQ pair after it"

    def _dequantized(self, value: str) -> bool:
        return self._dequantizer(value) is not None

    def _dequantizer(self, value: str) -> NodeProto | None:
        """The DequantizeLinear that ``value`` comes from, codes moved about or not."""
        made_by = self.producer.get(value)
        if made_by is None or made_by.op_type == "DequantizeLinear":
            return made_by
        return self._dequantizer(made_by.input[0]) if made_by.op_type in _MOVES_CODES else None

    def _why_output(self, node: NodeProto) -> str:
        """Follow the output down to the Q that should have absorbed the node."""
        between: list[NodeProto] = []
        value = node.output[0]
        while True:
            readers = self.readers[value]
            if value in self.outputs:
                return f"no Q on its output: {value!r} is an output of the graph"
            if len(readers) > 1:
                named = ", ".join(f"{reader.op_type} {_label(reader)}" for reader in readers)
                return (
                    f"its output {value!r} has {len(readers)} readers ({named}); "
                    "one Q must be the only one"
                )
            if not readers:
                return f"its output {value!r} is not used"
            reader = readers[0]
            if reader.op_type == "QuantizeLinear":
                return self._why_not_absorbed(between, reader)
            if reader.op_type not in _ABSORBABLE:
                if reader.op_type in _INSTEAD or reader.op_type in UNWEIGHTED | WEIGHTED:
                    return (
                        f"no Q on its output before {reader.op_type} {_label(reader)}"
                        + _INSTEAD.get(reader.op_type, "")
                    )
                return f"{reader.op_type} {_label(reader)} stands between it and Q"
            between.append(reader)
            value = reader.output[0]

    def _why_not_absorbed(self, between: list[NodeProto], quantize: NodeProto) -> str:
        if not between:
            return f"ONNX Runtime did not fuse it with QuantizeLinear {_label(quantize)}"
        scale, zero_point, info = self._grid(quantize)
        low, high = (info.min - zero_point) * scale, (info.max - zero_point) * scale
        for node in between:
            if node.op_type == "BatchNormalization":
                return (
                    f"BatchNormalization {_label(node)} stands between it and Q: "
                    "fold it into the weights"
                )
            if node.op_type == "Relu" and low < 0:
                return (
                    f"Relu {_label(node)} before a Q whose lowest value is {low:g}: it is "
                    f"absorbed only when that is 0 (zero point {info.min} for {info.dtype})"
                )
            if node.op_type == "Clip":
                return (
                    f"Clip {_label(node)} before a Q with the range {low:g} to {high:g}: it is "
                    "absorbed only when that range lies inside the clip's"
                )
        return f"ONNX Runtime did not fuse it with QuantizeLinear {_label(quantize)}"

    def _grid(self, quantize: NodeProto) -> tuple[float, int, np.iinfo[Any]]:
        scale = float(np.ravel(self.array(quantize.input[1]))[0])
        if len(quantize.input) < 3:
            return scale, 0, np.iinfo(np.uint8)
        zero_point = np.ravel(self.array(quantize.input[2]))
        return scale, int(zero_point[0]), np.iinfo(zero_point.dtype)


def _label(node: NodeProto) -> str:
    return repr(node.name or node.output[0])
