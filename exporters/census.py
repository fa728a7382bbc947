"""Every quantizer of a graph as data, so that a pass over the graph can be shown to have kept them all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import VerificationError

if TYPE_CHECKING:
    from onnx import ModelProto

KINDS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Quantizer:
    """One QuantizeLinear or DequantizeLinear.

    ``scales`` and ``zero_points`` are the bytes of the numbers as float64, so that the same number in
    float16 and in float32 is the same scale.
    """

    op_type: str
    axis: int
    scales: bytes
    zero_points: bytes


def census(model: ModelProto) -> Counter[Quantizer]:
    """How many there are of each.

    Raises:
        VerificationError: A scale or zero point is computed at run time.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t

    def number(name: str, owner: str) -> bytes:
        if name not in constants:
            raise VerificationError(
                f"{owner}: {name!r} is computed at run time; accepted are constant scales and zero "
                "points; export the network again"
            )
        array = numpy_helper.to_array(constants[name])
        return np.asarray(array, np.float64).tobytes() if array.size else b""

    found: Counter[Quantizer] = Counter()
    for node in model.graph.node:
        if node.op_type in KINDS:
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            scales = number(node.input[1], node.name)
            zeros = number(node.input[2], node.name) if len(node.input) > 2 else b""
            # An absent zero point is 0.
            zeros = zeros if any(zeros) else b""
            found[Quantizer(node.op_type, axis, scales, zeros)] += 1
    return found


def require_same(before: Counter[Quantizer], after: Counter[Quantizer], pass_name: str) -> None:
    """Both censuses count the same quantizers.

    Raises:
        VerificationError: They do not; says how many were lost and added.
    """
    lost, added = before - after, after - before
    if lost or added:
        raise VerificationError(
            f"{pass_name}: {lost.total()} of {before.total()} quantizers were lost or changed and "
            f"{added.total()} appeared; accepted is none; this is a bug, please report it"
        )
