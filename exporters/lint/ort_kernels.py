"""Predicts which layers ONNX Runtime leaves in float, from the graph alone.

Measured with onnxruntime 1.31.1 on x86-64 and compared, layer by layer, with the graph that it really
executes (``exporters/ort_graph.py``) in this module's tests.  In short:

* Int8 activations are rewritten to uint8 first, but only Q -> DQ pairs in which each has one reader; what
  is still int8 after that is not fused on x86-64 (``QDQS8ToU8``, session option ``qdqisint8allowed``).
* A layer is fused when its data inputs come from DequantizeLinear, codes moved about by Reshape, MaxPool
  and the like or not, and its output goes to exactly one QuantizeLinear.  ReLU and Clip in between are
  absorbed when the Q clamps as they do.  A MatMul needs no Q, unless a bias makes a Gemm of it,
  which it does for vectors and not for tokens.
* Scales and zero points are constant float32 scalars for activations; weights may have one per output
  channel; a float bias is quantized on the way; float weights too, but not those of a MatMul.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from exporters.lint.grid import Grid
from exporters.lint.view import DEQUANTIZE, QUANTIZE, GraphView, attributes_of, label
from exporters.ort_fusion import UNWEIGHTED, WEIGHTED

if TYPE_CHECKING:
    from onnx import NodeProto

Cause = Literal[
    "no-kernel",
    "input",
    "output",
    "relu",
    "clip",
    "batch-norm",
    "int8",
    "grid",
    "weights",
    "zero-point",
]
NO_KERNEL = frozenset({"ConvTranspose", "ReduceMean", "Pad", "HardSwish"})
_MOVES_CODES = frozenset(
    {"Dropout", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
_ABSORBED = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class Left:
    """A layer that stays float, and the first thing that keeps it there."""

    node: NodeProto
    cause: Cause
    detail: str


@dataclass(frozen=True)
class _Codes:
    """What a layer is fed: the grid, and whether it is (or is rewritten to) uint8."""

    dequantize: NodeProto
    grid: Grid
    unsigned: bool


def left_in_float(view: GraphView) -> tuple[Left, ...]:
    """Layers that ONNX Runtime has integer kernels for, or ought to, and computes in float."""
    return _Prediction(view).left


class _Prediction:
    def __init__(self, view: GraphView) -> None:
        self.view = view

    @cached_property
    def left(self) -> tuple[Left, ...]:
        found = []
        for node in self.view.of_type(*WEIGHTED, *UNWEIGHTED):
            if all(self.view.is_constant(source) for source in node.input if source):
                continue
            if node.op_type not in WEIGHTED and not self.view.source.touches_quantizer(node):
                continue
            if node.op_type == "Add" and any(
                self._bias_of(one) is node for one in self._before(node)
            ):
                continue  # looked at together with its MatMul
            why = next(self._obstacles(node), None)
            if why is not None:
                found.append(Left(node, *why))
        return tuple(found)

    def _obstacles(self, node: NodeProto) -> Iterator[tuple[Cause, str]]:
        if node.op_type in NO_KERNEL:
            yield "no-kernel", self.view.source.why_float(node)
            return
        weighted = node.op_type in WEIGHTED
        data = node.input[:1] if node.op_type in ("Conv", "Gemm") else node.input
        fed = []
        for place, source in enumerate(data):
            if weighted and place and self.view.weight_dequantizer(source):
                continue
            codes = self._fed(source)
            if codes is None:
                yield "input", self._unquantized(node, source)
                return
            fed.append(codes)
        for codes in fed:
            fault = self._grid_fault(codes.grid)
            if fault:
                yield "grid", f"DequantizeLinear {label(codes.dequantize)!r} {fault}"
        if node.op_type in ("Conv", "Gemm"):
            yield from self._weight_obstacles(node)
        bias = self._bias_of(node)
        if node.op_type == "Gemm" or bias is not None:
            for value in node.input[:2]:
                made_by = self.view.dequantizer(value)
                if made_by is not None and len(made_by.input) < 3:
                    yield "zero-point", f"DequantizeLinear {label(made_by)!r} has none"
        if node.op_type == "MatMul" and bias is None:
            return
        yield from self._output_obstacles(node if bias is None else bias)
        for codes in fed:
            if not codes.unsigned:
                yield "int8", self._shared(codes.dequantize)

    def _before(self, node: NodeProto) -> Iterator[NodeProto]:
        for value in node.input:
            made_by = self.view.producer(value)
            if made_by is not None:
                yield made_by

    def _bias_of(self, node: NodeProto) -> NodeProto | None:
        """The Add of a constant that makes a Gemm of a MatMul; it then needs a Q as a Gemm does."""
        if node.op_type != "MatMul" or self.view.weight_dequantizer(node.input[1]) is None:
            return None
        axes = self.view.shape(node.input[0])
        if axes is not None and len(axes) > 2:
            return None  # of tokens: their MatMul stays one, and writes floats
        reader = self.view.sole_reader(node.output[0])
        if reader is None or reader.op_type != "Add":
            return None
        other = next((value for value in reader.input if value != node.output[0]), "")
        shape = self.view.shape_of_constant(other) if self.view.is_constant(other) else None
        return reader if shape is not None and len(shape) == 1 else None

    # --- inputs

    def _fed(self, value: str) -> _Codes | None:
        """Back through what moves codes to the DQ, if one is there."""
        alone = True
        while True:
            readers = len(self.view.readers(value)) + self.view.is_output(value)
            alone = alone and readers == 1
            made_by = self.view.producer(value)
            if made_by is None:
                return None
            if made_by.op_type == DEQUANTIZE:
                break
            if made_by.op_type not in _MOVES_CODES:
                return None
            value = made_by.input[0]
        grid = self.view.grid(made_by)
        return _Codes(made_by, grid, grid.dtype == "uint8" or (alone and self._rewritten(made_by)))

    def _rewritten(self, dequantize: NodeProto) -> bool:
        """Whether int8 becomes uint8: a pair of one grid, each with one reader."""
        quantize = self.view.producer(dequantize.input[0])
        if quantize is None or quantize.op_type != QUANTIZE:
            return False
        if self.view.sole_reader(quantize.output[0]) is None:
            return False
        mine, theirs = self.view.grid(dequantize), self.view.grid(quantize)
        return mine.dtype == theirs.dtype == "int8" and _same_zero(mine, theirs)

    def _unquantized(self, node: NodeProto, source: str) -> str:
        if self.view.is_constant(source):
            return f"its input {source!r} is a float constant without DequantizeLinear"
        if node.op_type in WEIGHTED:
            return self.view.source.why_float(node)
        made_by = self.view.producer(source)
        origin = "an input of the graph" if made_by is None else f"made by {made_by.op_type}"
        return f"its input {source!r}, {origin}, has no Q/DQ pair"

    def _grid_fault(self, grid: Grid) -> str:
        if grid.dtype not in ("int8", "uint8"):
            return f"has {grid.dtype or 'unknown'} codes; integer kernels take int8 and uint8"
        if grid.scale is None or not grid.zero_is_constant:
            return "has a scale or zero point that is not constant"
        if grid.scale.size != 1:
            return f"has {grid.scale.size} scales; an activation has one"
        if grid.scale.dtype != np.float32:
            return f"has a {grid.scale.dtype} scale; integer kernels take float32"
        if not np.isfinite(grid.scale).all():
            return "has a scale that is not finite"
        return ""

    def _shared(self, dequantize: NodeProto) -> str:
        return (
            f"the int8 codes of DequantizeLinear {label(dequantize)!r} are not rewritten to uint8: "
            "they are no Q -> DQ pair of one grid with one reader each"
        )

    # --- weights

    def _weight_obstacles(self, node: NodeProto) -> Iterator[tuple[Cause, str]]:
        weight = node.input[1]
        dequantize = self.view.weight_dequantizer(weight)
        if dequantize is not None:
            grid = self.view.grid(dequantize)
            if grid.dtype not in ("int8", "uint8"):
                yield "weights", f"its weights have {grid.dtype} codes"
            elif grid.scale is None or grid.scale.dtype != np.float32 or grid.block_size:
                yield "weights", f"the scales of DequantizeLinear {label(dequantize)!r} do not fit"
            elif grid.per_channel and not self._along_outputs(node, dequantize, grid):
                yield "weights", f"its weights have one scale for each position of axis {grid.axis}"
            elif grid.per_channel and (count := _scales_missing(self.view, dequantize, grid)):
                yield "weights", count
        elif not self.view.is_constant(weight) and self._fed(weight) is None:
            yield "weights", f"its weights {weight!r} are computed in float"
        elif self.view.is_constant(weight) and self.view.dtype(weight) not in ("float", ""):
            yield "weights", f"its weights are {self.view.dtype(weight)}"
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias:
            made_by = self.view.weight_dequantizer(bias)
            if made_by is not None and self.view.grid(made_by).dtype != "int32":
                yield "weights", f"its bias {bias!r} has {self.view.grid(made_by).dtype} codes"
            elif not self.view.is_constant(bias):
                yield "weights", f"its bias {bias!r} is not constant"
            elif node.op_type == "Gemm" and attributes_of(node).get("beta", 1.0) != 1.0:
                yield "weights", "its bias is scaled by beta"

    def _along_outputs(self, node: NodeProto, dequantize: NodeProto, grid: Grid) -> bool:
        if node.op_type == "Gemm" and not attributes_of(node).get("transB", 0):
            shape = self.view.shape(dequantize.input[0]) or ()
            # It goes by the number of scales: a square matrix is fused either way, wrongly or not.
            return grid.axis == 1 or len(set(shape)) == 1
        return grid.axis == 0

    # --- outputs

    def _output_obstacles(self, node: NodeProto) -> Iterator[tuple[Cause, str]]:
        between: list[NodeProto] = []
        value = node.output[0]
        while True:
            reader = self.view.sole_reader(value)
            if reader is not None and reader.op_type == QUANTIZE:
                break
            if reader is None or reader.op_type not in _ABSORBED | _MOVES_CODES:
                cause: Cause = "output"
                if reader is not None and reader.op_type == "BatchNormalization":
                    cause = "batch-norm"
                yield cause, self.view.source.why_float(node)
                return
            between.append(reader)
            value = reader.output[0]
        grid = self.view.grid(reader)
        fault = self._grid_fault(grid)
        if fault:
            yield "grid", f"QuantizeLinear {label(reader)!r} {fault}"
            return
        for other in between:
            if other.op_type == "Relu" and grid.lowest < 0:
                yield "relu", self.view.source.why_float(node)
            if other.op_type == "Clip" and not self._clamps_as(other, grid):
                yield "clip", self.view.source.why_float(node)
        if grid.dtype == "int8":
            readers = self.view.readers(reader.output[0])
            pair = readers[0] if len(readers) == 1 else None
            if pair is None or pair.op_type != DEQUANTIZE or not self._becomes_unsigned(pair):
                yield (
                    "int8",
                    (
                        f"the int8 codes of QuantizeLinear {label(reader)!r} are not rewritten to uint8: "
                        "they are no Q -> DQ pair of one grid with one reader each"
                    ),
                )

    def _becomes_unsigned(self, dequantize: NodeProto) -> bool:
        value = dequantize.output[0]
        readers = len(self.view.readers(value)) + self.view.is_output(value)
        return readers <= 1 and self._rewritten(dequantize)

    def _clamps_as(self, clip: NodeProto, grid: Grid) -> bool:
        limits = [self.view.array(value) if value else None for value in clip.input[1:3]]
        low, high = [*limits, None, None][:2]
        attributes = attributes_of(clip)  # before opset 11
        least = attributes.get("min", -np.inf) if low is None else float(low)
        most = attributes.get("max", np.inf) if high is None else float(high)
        return grid.lowest >= least and grid.highest <= most


def _scales_missing(view: GraphView, dequantize: NodeProto, grid: Grid) -> str:
    shape = view.shape(dequantize.input[0])
    assert grid.scale is not None
    if shape is None or grid.axis >= len(shape) or shape[grid.axis] == grid.scale.size:
        return ""
    return f"its weights have {grid.scale.size} scales for {shape[grid.axis]} positions"


def _same_zero(one: Grid, other: Grid) -> bool:
    if not (one.zero_is_constant and other.zero_is_constant):
        return False
    values = [0 if g.zero_point is None else int(np.ravel(g.zero_point)[0]) for g in (one, other)]
    return values[0] == values[1]
