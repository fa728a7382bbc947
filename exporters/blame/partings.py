"""Where do the values of two graphs part?  Every value that both have, as a signal-to-noise ratio.

    snr = 10 log10( sum(trusted^2) / sum((trusted - suspect)^2) )   in dB; infinite where they are equal

A layer that is right passes on the noise it was given; one that is wrong adds its own. So what counts is
how much a value lost against the worst of what its layer read.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.sessions.ort import OrtCpuSession
from exporters.blame.graph_layers import GraphLayers

if TYPE_CHECKING:
    from onnx import ModelProto

# Rounding of float sums leaves about 120 dB, a rounding tie on an 8-bit grid here and there 40 to 80.
SAME_RUNTIME_DB, CLEAR_DB = 100.0, 30.0
EQUAL_DB = 200.0


@dataclass(frozen=True)
class Parting:
    """One value of both graphs.

    Attributes:
        layer: That makes it.
        value: Its name in the graph.
        snr_db: Of the suspect's against the trusted's, at most 200.
        lost_db: The least snr of what the layer read, minus its own.
    """

    layer: str
    value: str
    snr_db: float
    lost_db: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def partings(
    trusted: ModelProto,
    suspect: ModelProto,
    inputs: np.ndarray,
    *,
    suspect_fused: bool = False,
) -> list[Parting]:
    """Values that both graphs have by name, in the suspect's order, on one batch of inputs.

    The trusted graph runs with every Q/DQ pair in float. With ``suspect_fused`` the other one runs on
    integer kernels, and only the codes that come out of QuantizeLinear are looked at, because a
    look between two fused nodes would part them.
    """
    layers = GraphLayers(suspect)
    ours = {output for node in trusted.graph.node for output in node.output}
    values = []
    for node in suspect.graph.node:
        quantizer = node.op_type == "QuantizeLinear"
        fits = quantizer if suspect_fused else not quantizer
        if fits and not layers.graph.is_constant(node):
            values += [output for output in node.output if output in ours]
    last = suspect.graph.output[0].name
    values = [value for value in values if value != last]
    ends = [last] if trusted.graph.output[0].name == last else []
    one = _run(trusted, [*values, *ends], inputs, fused=False)
    two = _run(suspect, [*values, *ends], inputs, fused=suspect_fused)
    found: list[Parting] = []
    seen_db: dict[str, float] = {}
    for value in [*values, *ends]:
        offset = _zero_point(layers, value)
        snr_db = snr(one[value] - offset, two[value] - offset)
        read_db = _read(layers, value, seen_db)
        seen_db[value] = snr_db
        layer = layers.of(layers.graph.producer[value])
        found.append(Parting(layer, value, snr_db, max(0.0, read_db - snr_db)))
    return found


def culprits(found: list[Parting], clear_db: float = CLEAR_DB, most: int = 5) -> list[Parting]:
    """One parting for each layer that lost most, the largest first.

    Values above ``clear_db`` are within the noise of rounding and nobody's fault: where all are, there
    is no culprit.
    """
    by_layer: dict[str, Parting] = {}
    for parting in found:
        if parting.snr_db < clear_db and parting.lost_db > 3.0:
            known = by_layer.get(parting.layer)
            if known is None or parting.lost_db > known.lost_db:
                by_layer[parting.layer] = parting
    return sorted(by_layer.values(), key=lambda parting: -parting.lost_db)[:most]


def snr(trusted: np.ndarray, suspect: np.ndarray) -> float:
    """Signal-to-noise ratio in dB, within plus and minus 200; what is not finite has the least.

    >>> round(snr(np.array([1.0, 1.0]), np.array([1.1, 0.9])))
    20
    """
    if trusted.shape != suspect.shape:
        return -EQUAL_DB
    a, b = trusted.astype(np.float64), suspect.astype(np.float64)
    noise, signal = float(((a - b) ** 2).sum()), float((a**2).sum())
    if noise == 0:
        return EQUAL_DB
    if not (math.isfinite(noise) and signal > 0):
        return -EQUAL_DB
    return max(-EQUAL_DB, min(EQUAL_DB, 10 * math.log10(signal / noise)))


def _read(layers: GraphLayers, value: str, seen_db: dict[str, float]) -> float:
    """The least snr of the values that lead to ``value``, as far up as the nearest that were looked at."""
    least, waiting, visited = EQUAL_DB, [value], set()
    while waiting:
        node = layers.graph.producer.get(waiting.pop())
        for source in node.input if node is not None else ():
            if source in seen_db:
                least = min(least, seen_db[source])
            elif source not in visited:
                visited.add(source)
                waiting.append(source)
    return least


def _zero_point(layers: GraphLayers, value: str) -> float:
    node = layers.graph.producer[value]
    if node.op_type != "QuantizeLinear" or len(node.input) < 3 or not node.input[2]:
        return 0.0
    return float(np.ravel(layers.graph.array(node.input[2]))[0])


def _run(
    model: ModelProto, values: list[str], inputs: np.ndarray, *, fused: bool
) -> dict[str, np.ndarray]:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(
        onnx.ValueInfoProto(name=value) for value in values if value not in known
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "watched.onnx")
        onnx.save(copy, str(path))
        with closing(OrtCpuSession(path, disable_fusion=not fused)) as session:
            answered = session.run({model.graph.input[0].name: inputs})
    return {value: np.asarray(answered[value], np.float64) for value in values}
