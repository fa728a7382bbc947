"""What became of each layer: channels, weights, bits, kernel; read from a run's bundle.

A layer is a convolution or matrix product of the teacher's ONNX file, known by the name of its
weights.  The student's file has the same names, so a layer that it lacks was removed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from deploy.errors import MissingDependency, StorageError

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish")
_THROUGH = ("DequantizeLinear", "Transpose", "Cast")
_BITS = {"FLOAT": 32, "DOUBLE": 64, "FLOAT16": 16, "BFLOAT16": 16, "INT8": 8, "UINT8": 8, "INT4": 4}


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of one file: ``shape`` of its weights, ``outputs`` channels.

    ``bits`` of its weights as stored; ``quantized_input`` says whether its input is on a grid.  A
    runtime names its kernel after the node, its output, or the activation it fused: ``aliases``.
    """

    layer: str
    node: str
    shape: tuple[int, ...]
    outputs: int
    bits: int | None
    quantized_input: bool
    aliases: tuple[str, ...]

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One layer of the teacher and what is left of it; ``student`` is None where it was removed.

    ``kernel`` is what the runtime computes it with and ``reason`` why not with integers.
    """

    name: str
    teacher: Product
    student: Product | None
    weight_bits: int | None
    activation_bits: int | None
    kernel: str
    reason: str

    @property
    def sparsity(self) -> float:
        """Fraction of the teacher's weights that was removed; negative where weights were added."""
        return 1.0 if self.student is None else 1 - self.student.weights / self.teacher.weights


def read_layers(
    teacher: Path, student: Path, spec: Mapping[str, Any], kernels: Mapping[str, Any]
) -> list[Layer]:
    """The teacher's layers in its order; none where the student is of another family.

    ``spec`` is the bundle's ``student/spec.json``, ``kernels`` the manifest's record of them; either
    may be empty.

    Raises:
        StorageError: A file is no ONNX model.
        MissingDependency: The package onnx is not installed.
    """
    kept = {one.layer: one for one in read_products(student)}
    known = read_products(teacher)
    if 2 * len({one.layer for one in known} & set(kept)) < len(kept):
        return []
    grid = spec.get("quantization") or {}
    by_node = {
        str(entry.get("name")): entry
        for kind in ("integer", "float")
        for entry in kernels.get(kind) or ()
        if isinstance(entry, dict)
    }
    edges = [*list(kept)[:1], *list(kept)[-1:]]
    layers = []
    for one in known:
        left = kept.get(one.layer)
        entry = by_node.get(left.node, {}) if left else {}
        bits = left.bits if left else None
        if bits == 8 and grid:  # fewer bits are stored in bytes; the spec knows how many
            bits = grid.get("edge_bits" if one.layer in edges else "bits", bits)
        activation = None if left is None else 32
        if left is not None and left.quantized_input:
            activation = grid.get("activation_bits", 8)
        layers.append(
            Layer(
                one.layer, one, left, bits, activation,
                str(entry.get("kernel") or ""), str(entry.get("reason") or ""),
            )
        )  # fmt: skip
    return layers


def read_products(path: Path) -> list[Product]:
    """The convolutions and matrix products with constant weights of an ONNX file, in its order.

    Raises:
        StorageError: It is no ONNX model.
        MissingDependency: The package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency(
            "report: the layers of a bundle are read with the package onnx, which is not installed; "
            "install onnx, or make the page where the run was made"
        ) from error
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's own errors have no common type across its versions
        raise StorageError(
            f"{path}: cannot be read as ONNX ({' '.join(str(error).split())[:200]}); accepted is a "
            "bundle as it was written; copy the run again"
        ) from error
    constants = {constant.name: constant for constant in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS or len(node.input) < 2:
            continue
        weight = constants.get(_origin(node.input[1], maker))
        if weight is None:
            continue
        source = maker.get(node.input[0])
        found.append(
            Product(
                weight.name.rpartition(".")[0] or node.name,
                node.name,
                tuple(weight.dims),
                _outputs(node, tuple(weight.dims)),
                _BITS.get(onnx.TensorProto.DataType.Name(weight.data_type)),
                source is not None and source.op_type == "DequantizeLinear",
                _aliases(node, readers),
            )
        )
    return found


def _origin(name: str, maker: Mapping[str, Any]) -> str:
    """The value that ``name`` is made of, through what only changes its form."""
    while name in maker and maker[name].op_type in _THROUGH:
        name = maker[name].input[0]
    return name


def _aliases(node: Any, readers: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    names = [node.name, *node.output]
    after = readers.get(node.output[0], ())
    if len(after) == 1 and after[0].op_type in _FUSED:
        names += [after[0].name, *after[0].output]
    return tuple(names)


def _outputs(node: Any, shape: Sequence[int]) -> int:
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * int(settings.get("group", 1))
    if node.op_type == "Gemm":
        return shape[0] if settings.get("transB", 0) else shape[-1]
    return shape[-1]
