"""A float32 Q/DQ graph with float16 wherever it had float32, between inputs and outputs that stay float32.

A strongly typed runtime (TensorRT from 10.12 on) computes what is not integer in the type that the graph
says. So every float tensor becomes float16, except at the border, which callers of other targets share:

    input    -> QuantizeLinear with its float32 scale, exact; or -> Cast to float16 for any other reader
    output   <- Cast to float32

Scales must be float16 numbers already, so that no grid moves; other constants are rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import VerificationError
from exporters.census import census, require_same

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_OPSET = 19  # QuantizeLinear and DequantizeLinear take float16 from here on
# Inputs that an operator takes in float32 alone, by position.
FLOAT32_ONLY = {("Resize", 1), ("Resize", 2)}


def to_float16(model: ModelProto) -> None:
    """Rewrite ``model`` in place.

    Raises:
        VerificationError: A scale is no float16 number, or a constant is beyond float16's range.
    """
    from onnx import TensorProto, helper, numpy_helper

    before = census(model)
    graph = model.graph
    wide = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    inputs = {i.name for i in graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT}
    outputs = [o.name for o in graph.output if o.type.tensor_type.elem_type == TensorProto.FLOAT]
    halves: dict[str, str] = {}
    casts: dict[str, str] = {}
    front = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in inputs:
            continue
        for place, name in enumerate(node.input):
            if (node.op_type, place) in FLOAT32_ONLY:
                continue
            if name in wide:
                halves.setdefault(name, f"{name}.half")
                node.input[place] = halves[name]
            elif name in inputs:
                if name not in casts:
                    casts[name] = f"{name}.half"
                    front.append(
                        helper.make_node(
                            "Cast", [name], [casts[name]], f"{name}/Cast", to=TensorProto.FLOAT16
                        )
                    )
                node.input[place] = casts[name]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    for name, half in halves.items():
        array = numpy_helper.to_array(wide[name])
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float16)
        if not np.isfinite(rounded).all() and np.isfinite(array).all():
            raise VerificationError(
                f"float16: constant {name!r} reaches {np.abs(array).max():.3g}; accepted is up to "
                f"{float(np.finfo(np.float16).max):g}; export for tensorrt, in float32"
            )
        graph.initializer.append(numpy_helper.from_array(rounded, half))
    back = []
    for name in outputs:
        inner = f"{name}.half"
        for node in graph.node:
            node.input[:] = [inner if i == name else i for i in node.input]
            node.output[:] = [inner if o == name else o for o in node.output]
        back.append(helper.make_node("Cast", [inner], [name], f"{name}/Cast", to=TensorProto.FLOAT))
    nodes = [*front, *graph.node, *back]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # of the float32 graph
    require_same(before, census(model), "float16")
