"""Parameters and MACs of an ONNX file, counted as those of a torch network are.

MACs are the multiplications of convolutions and of products with a constant matrix, for one input.
Parameters are the floating-point constants that training would move: weights, biases, factors and shifts,
not the statistics of a batch norm, nor scales of quantizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import StorageError
from exporters import onnx_file
from exporters.ort_fusion import WEIGHTED

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Inputs of an operator that are no parameters: statistics, scales, shapes.
_NOT_LEARNED = {
    "BatchNormalization": {3, 4},
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "Clip": {1, 2},
    "Resize": {1, 2, 3},
    "Pad": {1, 2, 3},
}


@dataclass(frozen=True)
class OnnxCost:
    """What one input costs, and how much is stored to compute it."""

    parameters: int
    macs: int


def onnx_cost(path: Path) -> OnnxCost:
    """Count ``path``, whose first axis of every input is the batch.

    Raises:
        StorageError: There is no such file, it is not a whole model, or it does not run on one input.
        MissingDependency: onnx is not installed.
    """
    return count(onnx_file.load(path), path.name)


def count(model: ModelProto, name: str) -> OnnxCost:
    """As `onnx_cost`, of a model in memory that errors call ``name``."""
    shapes = _shapes_of_one_input(model, name)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    origins = {node.output[0]: node for node in model.graph.node}
    macs = sum(_macs(node, shapes, constants, origins) for node in model.graph.node)
    learned = {
        tensor
        for node in model.graph.node
        for place, tensor in enumerate(node.input)
        if tensor in constants
        and constants[tensor].dims  # single numbers: padding, epsilons, factors of the graph's own
        and place not in _NOT_LEARNED.get(node.op_type, ())
        and _is_learned(constants[tensor], node)
    }
    return OnnxCost(sum(math.prod(constants[tensor].dims) for tensor in learned), macs)


def _is_learned(tensor: TensorProto, reader: NodeProto) -> bool:
    """Whether a constant holds values that training moves: floats, or integers that are dequantized."""
    from onnx import TensorProto as Kinds

    floats = {Kinds.FLOAT, Kinds.FLOAT16, Kinds.BFLOAT16, Kinds.DOUBLE}
    return tensor.data_type in floats or reader.op_type == "DequantizeLinear"


def _shapes_of_one_input(model: ModelProto, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes that one input of zeros meets: by running it, which sees through every computed shape."""
    import numpy as np
    import onnx
    import onnxruntime

    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if not all(sizes[1:]):
            raise StorageError(
                f"{name}: input {value.name!r} is of shape {sizes} (0: not written down); accepted is "
                "a graph whose input sizes, but for the batch, are; export it with fixed sizes"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = np.zeros([1, *sizes[1:]] if sizes else [], dtype)
    wanted = {
        value
        for node in model.graph.node
        if node.op_type in WEIGHTED
        for value in (*node.input[:2], node.output[0])
        if value not in constants and value not in feeds
    }
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=value) for value in sorted(wanted))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(sorted(wanted), feeds) if wanted else []
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise StorageError(
            f"{name}: does not run on one input of zeros ({' '.join(str(error).split())[:200]}); "
            "accepted is a model that ONNX Runtime runs at batch 1; export it with a free batch"
        ) from error
    shapes = {
        value: tuple(array.shape) for value, array in zip(sorted(wanted), values, strict=True)
    }
    return constants | shapes | {value: tuple(array.shape) for value, array in feeds.items()}


def _macs(
    node: NodeProto,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, TensorProto],
    origins: Mapping[str, NodeProto],
) -> int:
    if node.op_type not in WEIGHTED:
        return 0
    weight = node.input[1]
    if node.op_type in ("Gemm", "MatMul") and not _is_constant(weight, constants, origins):
        return 0  # two activations: no layer has these as its weights
    # Each weight of a transposed convolution is used once per input position, of others per output's.
    moving = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
    w, there = shapes[weight], shapes[moving]
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(w) * math.prod(there[2:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    inner = w[-1] if transposed else w[-2 if len(w) > 1 else 0]
    return math.prod(there) * inner


def _is_constant(
    value: str, constants: Mapping[str, TensorProto], origins: Mapping[str, NodeProto]
) -> bool:
    """Whether ``value`` is stored, or made of stored values alone: dequantized, transposed, cast."""
    while value not in constants:
        node = origins.get(value)
        if node is None or node.op_type not in (
            "DequantizeLinear",
            "QuantizeLinear",
            "Transpose",
            "Cast",
            "Identity",
        ):
            return False
        value = node.input[0]
    return True
