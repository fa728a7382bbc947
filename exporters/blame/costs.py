"""Which layer costs the metric?  One at a time goes back to float, and the student is asked again.

A layer in float has its output's Q/DQ pair bypassed and, where a trusted file of the same network is at
hand, that file's weights. What the decisions regain is what the layer costs. The signal-to-noise ratio
of the outputs orders layers that decide alike.
Axes: N rows, C classes.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.sessions.ort import OrtCpuSession
from exporters.blame.graph_layers import GraphLayers
from exporters.blame.partings import snr

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 64


@dataclass(frozen=True)
class Cost:
    """What one layer in float gives back.

    Attributes:
        layer: Its name.
        regained: Share of decisions that agree with the reference more than before, in [-1, 1].
        top1_points: Percentage points of top-1, or None without labels.
        snr_db: Of the outputs with this layer in float; ``gained_db`` against before.
    """

    layer: str
    regained: float
    top1_points: float | None
    snr_db: float
    gained_db: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def costs(
    suspect: ModelProto,
    reference_NC: np.ndarray,
    inputs: np.ndarray,
    *,
    labels_N: np.ndarray | None = None,
    trusted: ModelProto | None = None,
    fused: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cost]:
    """Every layer with a Q/DQ pair or weights, the most expensive first.

    ``reference_NC`` is what should come out. ``progress`` is told how many layers are done, of how many.
    """
    base_NC = answer(suspect, inputs, fused)
    base = _agreement(base_NC, reference_NC), snr(reference_NC, base_NC)
    names = _layers(suspect, trusted)
    found = []
    for done, name in enumerate(names):
        got_NC = answer(in_float(suspect, name, trusted), inputs, fused)
        right = None
        if labels_N is not None:
            right = 100 * float(
                np.mean(got_NC.argmax(1) == labels_N) - np.mean(base_NC.argmax(1) == labels_N)
            )
        snr_db = snr(reference_NC, got_NC)
        found.append(
            Cost(name, _agreement(got_NC, reference_NC) - base[0], right, snr_db, snr_db - base[1])
        )
        if progress is not None:
            progress(done + 1, len(names))
    return sorted(found, key=lambda cost: (-round(cost.regained, 6), -cost.gained_db))


def in_float(suspect: ModelProto, layer: str, trusted: ModelProto | None = None) -> ModelProto:
    """A copy of ``suspect`` whose layer has no Q/DQ pair on its output and the trusted weights."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(suspect)
    layers = GraphLayers(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for quantize, dequantize in layers.pairs():
        if layers.of(quantize) == layer:  # what comes out has the type of its scale
            to = kinds.get(dequantize.input[1], onnx.TensorProto.FLOAT)
            cast = onnx.helper.make_node(
                "Cast", [quantize.input[0]], [dequantize.output[0]], dequantize.name, to=to
            )
            dequantize.CopyFrom(cast)
    if trusted is not None:
        _take_weights(model, layers, trusted, layer)
    return model


def _take_weights(model: ModelProto, layers: GraphLayers, trusted: ModelProto, layer: str) -> None:
    """Float weights and biases of the trusted file in place of the layer's."""
    from onnx import numpy_helper

    theirs = GraphLayers(trusted)
    weighted = {theirs.of(node): node for node in theirs.weighted()}
    for node in layers.weighted():
        if layers.of(node) != layer or layer not in weighted:
            continue
        for place, array in enumerate(_float_constants(theirs, weighted[layer])):
            if array is not None and place + 1 < len(node.input):
                name = f"blame/{layer}/{place}"
                model.graph.initializer.append(numpy_helper.from_array(array, name))
                node.input[place + 1] = name


def _float_constants(layers: GraphLayers, node: Any) -> list[np.ndarray | None]:
    """Weights, dequantized, and the bias of a weighted node, where they are constants."""
    found: list[np.ndarray | None] = []
    for value in node.input[1:]:
        if value in layers.graph.constants:
            found.append(layers.graph.array(value))
            continue
        made_by = layers.graph.producer.get(value)
        if made_by is None or made_by.op_type != "DequantizeLinear":
            found.append(None)
            continue
        found.append(layers.dequantized(made_by))
    return found


def _layers(suspect: ModelProto, trusted: ModelProto | None) -> list[str]:
    layers = GraphLayers(suspect)
    quantized = {layers.of(quantize) for quantize, _ in layers.pairs()}
    if trusted is not None:
        quantized |= {layers.of(node) for node in layers.weighted()}
    order: dict[str, None] = defaultdict(lambda: None)
    for node in suspect.graph.node:
        name = layers.of(node)
        if name in quantized:
            order[name] = None
    return list(order)


def _agreement(got_NC: np.ndarray, reference_NC: np.ndarray) -> float:
    return float(np.mean(got_NC.argmax(axis=1) == reference_NC.argmax(axis=1)))


def answer(model: ModelProto, inputs: np.ndarray, fused: bool) -> np.ndarray:
    """What a graph answers to inputs [N, ...], in batches."""
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "variant.onnx")
        onnx.save(model, str(path))
        with closing(OrtCpuSession(path, disable_fusion=not fused)) as session:
            source, target = session.inputs[0].name, session.outputs[0].name
            answered = [
                session.run({source: inputs[start : start + BATCH]})[target]
                for start in range(0, len(inputs), BATCH)
            ]
    return np.concatenate(answered)
