"""Rules about numbers of channels: what fills the tiles of integer kernels."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.registry import Hit, rule
from exporters.lint.rules.weights import output_axis
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView, attributes_of, label

# Channels that one step of an INT8 kernel covers.
_TILE = {"tensorrt": 32, "tensorrt-fp16": 32, "ort-cpu": 16}
_HALF_TILE = 16


@rule(
    "WIDTH-TILE",
    title="number of channels that does not fill the kernel's tile",
    tensorrt="note",
    ort_cpu="note",
    explanation="""Integer kernels compute whole tiles of channels, and the rest of the last one
    is thrown away. TensorRT packs INT8 in 32 channels (16 is half a tile); on ONNX Runtime's CPU
    kernels 12 channels took 45 us where 16 took 34 (3x3, 32x32, onnxruntime 1.31.1, one thread),
    and multiples of 16 are what buys time. Layers with fewer inputs than a tile, such as the first,
    and depthwise ones are not named.""",
    remedy="cut channels to multiples of 16 (structure.align), 32 for wide layers on TensorRT",
)
def tile(view: GraphView, target: LintTarget) -> Iterator[Hit]:
    width = _TILE[target.runtime]
    for node in view.of_type("Conv", "ConvTranspose"):
        shape = view.shape(node.input[1])
        if shape is None or len(shape) < 3 or attributes_of(node).get("group", 1) != 1:
            continue
        if (
            view.weight_dequantizer(node.input[1]) is None
            and view.dequantizer(node.input[0]) is None
        ):
            continue
        outputs, inputs = (
            shape[output_axis(node, len(shape))],
            shape[1 - output_axis(node, len(shape))],
        )
        if not (isinstance(outputs, int) and isinstance(inputs, int)):
            continue
        odd = [
            f"{count} {side}"
            for side, count in (("inputs", inputs), ("outputs", outputs))
            if count % width
            and count != _HALF_TILE
            and not (side == "inputs" and count < _HALF_TILE // 2)
        ]
        if odd:
            yield Hit(label(node), f"{' and '.join(odd)}; a tile has {width}")
