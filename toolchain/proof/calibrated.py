"""What a file that was quantized without training should hold: the float file's weights, and fitting steps.

The float file is quantized again, calibrated on samples at hand. Nodes and weights depend on no sample and
have to be the same. The steps of activations depend on all images that the shipped file was calibrated on, so
they are only asked to be of the same size, within a factor of ``FACTOR``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.bundle import Bundle
from exporters import onnx_file
from exporters.blame.graph_diff import Difference, differences
from exporters.blame.graph_layers import GraphLayers

if TYPE_CHECKING:
    from onnx import ModelProto

    from exporters.calibration.static_int8 import Grid, Method

FACTOR = 3.0
ROWS = 256


def calibration_method(bundle: Bundle) -> Method | None:
    """How the bundle's recipe calibrates, or None where it does not, or does not say."""
    stages: list[dict[str, Any]] = bundle.manifest.get("recipe", {}).get("stages", [])
    return next((stage["static_int8"] for stage in stages if stage.get("static_int8")), None)


def calibrated_anew(float_onnx: Path, inputs: np.ndarray, method: Method, grid: Grid) -> ModelProto:
    """The float file quantized on ``inputs`` [B, C, H, W], pre-processed."""
    from exporters.calibration.static_int8 import static_int8

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "calibrated.onnx")
        return onnx_file.load(static_int8(float_onnx, [inputs], path, method=method, grid=grid))


def calibrated_differences(fresh: ModelProto, shipped: ModelProto) -> list[Difference]:
    """Differences of the shipped file that no choice of calibration images explains."""
    trusted, suspect = GraphLayers(fresh), GraphLayers(shipped)
    ranges = {
        str(node.name or node.output[0])
        for node in fresh.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and not trusted.graph.is_constant(node)
    }
    found = [
        each
        for each in differences(fresh, shipped)
        if not (each.kind == "constant" and each.node in ranges)
    ]
    theirs = {str(node.name or node.output[0]): node for node in shipped.graph.node}
    for node in fresh.graph.node:
        name = str(node.name or node.output[0])
        other = theirs.get(name)
        if node.op_type != "QuantizeLinear" or name not in ranges or other is None:
            continue
        ours, its = (
            float(np.ravel(layers.graph.array(each.input[1]))[0])
            for layers, each in ((trusted, node), (suspect, other))
        )
        if not ours / FACTOR <= its <= ours * FACTOR:
            what = f"the step of {name} is {its / ours:.3g} times what the samples here ask for"
            found.append(Difference(suspect.of(other), name, "constant", what))
    return found
