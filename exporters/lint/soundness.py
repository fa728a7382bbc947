"""Is a model whole enough to be looked at?  A damaged file can still be a valid protobuf message."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploy.errors import StorageError
from exporters.lint.signatures import all_schemas
from exporters.lint.view import is_standard, label

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def require_sound(model: ModelProto, name: str) -> None:
    """Nothing, if tensors have the values that their sizes ask for and nodes what their operators do.

    Raises:
        StorageError: With the first thing that is damaged.
    """
    for what in _damages(model):
        raise StorageError(
            f"{name}: {what}; accepted is a whole ONNX model, export or copy it again"
        )


def _damages(model: ModelProto) -> Iterator[str]:
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from _of_values(graph)
        for tensor in graph.initializer:
            yield from _of_tensor(tensor)
        for node in graph.node:
            yield from _of_node(node)
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield from _of_tensor(attribute.t)
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def _of_values(graph: GraphProto) -> Iterator[str]:
    from onnx import TensorProto

    for one in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if not isinstance(one.name, str):
            yield f"the name {one.name!r} is no text"
    for value in (*graph.input, *graph.output, *graph.value_info):
        number = value.type.tensor_type.elem_type
        if number not in TensorProto.DataType.values():
            yield f"the value {value.name!r} has the element type {number}, which does not exist"
        if any(dim.dim_value < 0 for dim in value.type.tensor_type.shape.dim):
            yield f"the value {value.name!r} has a negative size"


def _of_tensor(tensor: TensorProto) -> Iterator[str]:
    from onnx import TensorProto, helper, numpy_helper

    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        yield f"the tensor {tensor.name!r} has the element type {tensor.data_type}, which does not exist"
        return
    if any(size < 0 for size in tensor.dims):
        yield f"the tensor {tensor.name!r} has a negative size"
        return
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        bits = _bits(tensor.data_type, helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
        wanted = math.ceil(count * bits / 8)
        if len(tensor.raw_data) != wanted:
            yield f"the tensor {tensor.name!r} has {len(tensor.raw_data)} bytes for {wanted}"
    elif tensor.data_location != TensorProto.EXTERNAL:
        try:
            numpy_helper.to_array(tensor)
        except (LookupError, TypeError, ValueError):
            yield f"the tensor {tensor.name!r} has not the {count} values that its sizes ask for"


def _bits(data_type: int, itemsize: int) -> int:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    return 2 if name in ("INT2", "UINT2") else 8 * itemsize


def _of_node(node: NodeProto) -> Iterator[str]:
    texts = [node.op_type, node.domain, node.name, *node.input, *node.output]
    texts += [attribute.name for attribute in node.attribute]
    if not all(
        isinstance(text, str) for text in texts
    ):  # protobuf hands out bytes for broken UTF-8
        yield f"a node has the name {node.name!r} and the operator {node.op_type!r}, which are no text"
        return
    schemas = all_schemas(node.op_type) if is_standard(node) else ()
    if not schemas:
        return
    # What no opset allows; what this one does not is found by the rules.
    for given, least, what in (
        (len(node.input), min(schema.min_input for schema in schemas), "inputs"),
        (len(node.output), min(schema.min_output for schema in schemas), "outputs"),
    ):
        if given < least:
            yield f"{node.op_type} {label(node)!r} has {given} {what}; accepted is {least} or more"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not all(node.input[:2]):
        yield f"{node.op_type} {label(node)!r} has no value or no scale"
