"""Sizes that do not fit, and that ONNX's shape inference passes over: seen in the first call only.

NVIDIA's importer refuses each of them (TensorRT-RTX 1.7.1); ONNX Runtime 1.31.1 loads the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporters.lint.view import GraphView, attributes_of

if TYPE_CHECKING:
    from onnx import NodeProto

Sizes = tuple[int | str | None, ...]


def misfitting_sizes(view: GraphView) -> Iterator[tuple[NodeProto, str]]:
    """Nodes whose constants or attributes do not fit the sizes of their input, and how."""
    for node in view.of_type("Conv", "Reshape", "PRelu", "DepthToSpace"):
        if len(node.input) < 1 + (node.op_type != "DepthToSpace") or not all(node.input[:2]):
            continue
        sizes = view.shape(node.input[0])
        if sizes is None:
            continue
        if node.op_type == "Conv":
            yield from ((node, text) for text in _of_conv(view, node, sizes))
        elif node.op_type == "DepthToSpace":
            block = attributes_of(node).get("blocksize", 1)
            if len(sizes) == 4 and isinstance(sizes[1], int) and block and sizes[1] % block**2:
                yield node, f"{sizes[1]} channels do not divide by {block} x {block}"
        else:
            constant = view.shape_of_constant(node.input[1])
            if node.op_type == "PRelu" and constant is not None and not _spreads(constant, sizes):
                yield node, f"slopes of {list(constant)} do not spread over {_shown(sizes)}"
            if node.op_type == "Reshape":
                yield from ((node, text) for text in _of_reshape(view, node, sizes))


def too_small_images(view: GraphView) -> Iterator[tuple[NodeProto, str]]:
    """Windows that are larger than the padded image that they slide over."""
    for node in view.of_type("Conv", "MaxPool", "AveragePool"):
        given = attributes_of(node)
        sizes = view.shape(node.input[0])
        weights = view.shape(node.input[1]) if node.op_type == "Conv" else None
        window = list(given.get("kernel_shape", (weights or ())[2:]))
        if sizes is None or len(sizes) - 2 != len(window):
            continue
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        axes = len(window)
        pads = list(given.get("pads", [])) or [0] * (2 * axes)
        steps = list(given.get("dilations", [])) or [1] * axes
        if len(pads) != 2 * axes or len(steps) != axes:
            continue
        for axis, (size, extent) in enumerate(zip(sizes[2:], window, strict=True)):
            if not isinstance(size, int) or not isinstance(extent, int):
                continue
            padded = size + pads[axis] + pads[axis + axes]
            if padded < (extent - 1) * steps[axis] + 1:
                yield node, f"its window {window} is larger than the image {_shown(sizes[2:])}"
                break


def _of_conv(view: GraphView, node: NodeProto, sizes: Sizes) -> Iterator[str]:
    weights = view.shape(node.input[1])
    if weights is None or len(weights) != len(sizes) or len(weights) < 3:
        return
    given = attributes_of(node)
    kernel = given.get("kernel_shape")
    if (
        kernel
        and all(isinstance(size, int) for size in weights)
        and list(kernel) != list(weights[2:])
    ):
        yield f"kernel_shape {list(kernel)} and weights of {_shown(weights)}"
    groups = given.get("group", 1)
    if (
        isinstance(sizes[1], int)
        and isinstance(weights[1], int)
        and weights[1] * groups != sizes[1]
    ):
        yield f"{sizes[1]} channels, and weights for {weights[1]} in each of {groups} groups"
    known = len(node.input) > 2 and view.is_constant(node.input[2])
    bias = view.shape(node.input[2]) if known else None
    if bias and isinstance(weights[0], int) and bias != (weights[0],):
        yield f"a bias of {_shown(bias)} for {weights[0]} outputs"


def _of_reshape(view: GraphView, node: NodeProto, sizes: Sizes) -> Iterator[str]:
    wanted = view.array(node.input[1])
    known = [size for size in sizes if isinstance(size, int)]
    if wanted is None or wanted.ndim != 1 or len(known) != len(sizes) or 0 in known:
        return
    whole, asked = math.prod(known), [int(size) for size in wanted]
    if any(size < -1 for size in asked) or asked.count(-1) > 1 or 0 in asked[len(known) :]:
        return
    if attributes_of(node).get("allowzero", 0) and 0 in asked:
        return
    asked = [known[place] if size == 0 else size for place, size in enumerate(asked)]
    made = math.prod(size for size in asked if size != -1)
    if made != whole and (-1 not in asked or whole % made):
        yield f"{whole} values of {_shown(sizes)} do not make {list(map(int, wanted))}"


def _spreads(constant: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether a constant is broadcast to ``sizes`` and leaves them as they are."""
    if len(constant) > len(sizes):
        return False
    behind = sizes[len(sizes) - len(constant) :]
    return all(
        one == 1 or not isinstance(size, int) or one == size
        for one, size in zip(constant, behind, strict=True)
    )


def _shown(sizes: Sizes) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"
