"""Ranges of activations that make quantization's squared error least.

    error(r) = sum over bins  count (c - dequantize(quantize(c)))^2,   on the grid from r low to r high

r goes through shares of the seen range in steps of one percent; c is the middle of a bin of the values'
histogram. A shorter range cuts off what is rare and has finer steps for the rest. Choukroun et al. 2019,
https://arxiv.org/abs/1902.06822, choose ranges by the same criterion.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy.sessions.ort import OrtCpuSession

BINS = 2048
SHARES = np.arange(0.2, 1.005, 0.01)


@dataclass
class _Seen:
    """Values of one tensor over all batches."""

    low: float = np.inf
    high: float = -np.inf
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS))

    def widen(self, values: np.ndarray) -> None:
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())

    def count(self, values: np.ndarray) -> None:
        self.counts += np.histogram(values, BINS, (self.low, self.high))[0]


def mse_ranges(
    path: Path, batches: Sequence[np.ndarray], *, symmetric: bool
) -> dict[str, tuple[float, float]]:
    """(low, high) of every float activation of the one-input model, input and outputs included.

    ``symmetric`` is the grid of 255 steps around zero, otherwise one of 256 from low to high. Tensors that
    never vary have no range here.
    """
    seen = {name: _Seen() for name in _float_values(path)}
    with tempfile.TemporaryDirectory() as scratch:
        watching = _watching(path, Path(scratch, "watched.onnx"), list(seen))
        with closing(watching) as session:
            source = session.inputs[0].name
            for act in (_Seen.widen, _Seen.count):
                for batch in batches:
                    answered = {**session.run({source: batch}), source: batch}
                    for name, values in seen.items():
                        if act is _Seen.widen or values.high > values.low:
                            act(values, answered[name])
    return {
        name: best_range(each.counts, each.low, each.high, symmetric=symmetric)
        for name, each in seen.items()
        if each.high > each.low
    }


def best_range(
    counts: np.ndarray, low: float, high: float, *, symmetric: bool
) -> tuple[float, float]:
    """The range within [low, high] whose grid has the least squared error on a histogram over it.

    Zero stays on the grid: the range always holds it.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 254 if symmetric else 255
    errors = []
    for share in SHARES:
        step = share * (high - low) / steps
        zero = round(-share * low / step)
        codes = np.clip(np.rint(middle / step) + zero, 0, steps)
        errors.append(float((counts * ((codes - zero) * step - middle) ** 2).sum()))
    share = float(SHARES[int(np.argmin(errors))])
    return share * low, share * high


def _float_values(path: Path) -> list[str]:
    """The input, and what nodes write of type float."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    typed = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        value.name
        for value in typed
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and value.name not in constants
    ]


def _watching(path: Path, out: Path, values: list[str]) -> OrtCpuSession:
    """A session that returns these values too."""
    import onnx

    model = onnx.load(str(path))
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in values if name not in known
    )
    onnx.save(model, str(out))
    return OrtCpuSession(out)
