"""Measured time per layer and width on the target: ONNX Runtime's CPU kernels, int8, one thread, batch 1.

    t(layer) = (T(n copies of the layer) - T(n copies of nothing)) / n

Every distinct layer shape is measured at the widths that may be chosen, and nothing is interpolated.
Copies run side by side on one input and end in a global average pool each, so that the layer meets the
same neighbours (uint8 in, uint8 out, channels last inside) as in a network, whatever its stride; the
same graph without the layer is subtracted. This machine may be busy with other things: all sessions take
turns in several rounds, and the best round's median counts.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np

from toolchain.structure.cost import Cost, Layer
from toolchain.structure.layer_graph import COPIES, Shape, build_graph
from toolchain.structure.plan import Group

Progress = Callable[[int, int], None]
ROUNDS = 5
ROUND_MS = 8.0
_MOST_WIDTHS = 8  # per group; wider groups are considered in larger steps


class LatencyTable:
    """Times in microseconds, measured when first asked for and kept in a file.

    Args:
        folder: Where times are kept, in one file per processor model and ONNX Runtime version.
        step: Widths considered are multiples of this.
        progress: Called with (shapes measured, shapes to measure).
    """

    def __init__(self, folder: Path, step: int = 8, progress: Progress | None = None) -> None:
        self._step = step
        self._progress = progress
        self._path = Path(folder) / f"latency-{machine()}.json"
        self._times_us: dict[str, float] = {}
        if self._path.is_file():
            self._times_us = json.loads(self._path.read_text(encoding="utf-8"))

    def widths(self, channels: int) -> tuple[int, ...]:
        """The widths, ascending, that are worth considering for a group of so many channels."""
        units = -(-channels // self._step)
        step = self._step * -(-units // _MOST_WIDTHS)
        return (*range(step, channels, step), channels)

    def prepare(self, cost: Cost, groups: Iterable[Group]) -> None:
        """Measure every shape that cutting these groups to the widths considered can lead to."""
        choices: dict[tuple[str, str], list[list[int]]] = {}
        for group in groups:
            if group.reason is None:
                for part in group.slices:
                    if part.index:
                        gone = [
                            (group.channels - width) * len(part.index[0])
                            for width in self.widths(group.channels)
                        ]
                        choices.setdefault((part.module, part.axis), []).append(gone)
        shapes: dict[Shape, None] = {}
        for name, layer in cost.layers.items():
            sides = [
                _sums(full, choices.get((name, axis), []))
                for axis, full in (("in", layer.in_channels), ("out", layer.out_channels))
            ]
            for in_channels, out_channels in product(*sides):
                shapes.update(dict.fromkeys(_shapes(layer, in_channels, out_channels, adds=1)))
            whole = _shapes(layer, layer.in_channels, layer.out_channels, adds=1, precision="float")
            shapes.update(dict.fromkeys(whole))
        self._measure(shapes)

    def time_us(
        self,
        layer: Layer,
        in_channels: int,
        out_channels: int,
        adds: int = 0,
        precision: Literal["int8", "float"] = "int8",
    ) -> float:
        """Microseconds of a layer at these widths, and of the residual adds right after it."""
        shapes = _shapes(layer, in_channels, out_channels, adds, precision)
        self._measure(shapes)
        times_us = [self._times_us[shape.key] for shape in shapes]
        return sum(
            time_us * (adds if shape.kind == "add" else 1)
            for time_us, shape in zip(times_us, shapes, strict=True)
        )

    def _measure(self, shapes: Iterable[Shape]) -> None:
        missing = {shape.key: shape for shape in shapes if shape.key not in self._times_us}
        if not missing:
            return
        pools = {
            _pool_after(shape).key: _pool_after(shape)
            for shape in missing.values()
            if shape.kind not in ("linear", "pool")
        }
        missing |= {key: pool for key, pool in pools.items() if key not in self._times_us}
        raw_us = _take_turns(list(missing.values()), self._progress)
        for key, shape in missing.items():
            if shape.kind == "pool":
                self._times_us[key] = raw_us[key]
        for key, shape in missing.items():
            if shape.kind != "pool":
                nothing_us = (
                    0.0 if shape.kind == "linear" else self._times_us[_pool_after(shape).key]
                )
                self._times_us[key] = max(0.01, raw_us[key] - nothing_us)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".partial")
        scratch.write_text(json.dumps(self._times_us, indent=1, sort_keys=True), encoding="utf-8")
        scratch.replace(self._path)


def _sums(full: int, gone: Sequence[Sequence[int]]) -> list[int]:
    """The widths of an axis that several groups share; the rest is measured when asked for."""
    widths = {full}
    for group in gone:
        widths = {width - positions for width in widths for positions in group}
        if len(widths) > 2 * _MOST_WIDTHS:
            return [full]
    return sorted(widths - {0})


def machine() -> str:
    """The processor model and the ONNX Runtime version, fit for a file name."""
    import onnxruntime

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.M)
        model = found.group(1) if found else model
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{model} {platform.machine()}").strip("-")
    return f"{words}-ort-{onnxruntime.__version__}"


def _shapes(
    layer: Layer,
    in_channels: int,
    out_channels: int,
    adds: int = 0,
    precision: Literal["int8", "float"] = "int8",
) -> list[Shape]:
    """What runs for a layer: itself and the add after it; normalisation is folded and costs nothing."""
    if layer.kind in ("norm", "other") or not layer.positions:
        return []
    if layer.kind == "linear":
        return [Shape("linear", in_channels, out_channels, precision=precision)]
    depthwise = layer.kind == "depthwise"
    found = [
        Shape(
            "transposed" if layer.kind == "transposed" else "conv",
            out_channels if depthwise else in_channels,
            out_channels,
            out_channels if depthwise else layer.groups,
            _two(layer.kernel, 1),
            _two(layer.stride, 1),
            _two(layer.padding, 0),
            _two(layer.input_size, 1),
            precision,
        )
    ]
    if adds:
        found.append(
            Shape(
                "add",
                out_channels,
                out_channels,
                size=_two(layer.output_size, 1),
                precision=precision,
            )
        )
    return found


def _two(values: tuple[int, ...], missing: int) -> tuple[int, ...]:
    """Spatial values of a 1-D layer as those of a 2-D one of height 1."""
    return (missing, *values) if len(values) == 1 else values


def _pool_after(shape: Shape) -> Shape:
    """The graph of ``shape`` with the layer left out: only the pools of its copies' outputs."""
    size = shape.size
    if shape.kind == "conv":
        size = tuple(
            (pixels + 2 * padding - kernel) // stride + 1
            for pixels, padding, kernel, stride in zip(
                shape.size, shape.padding, shape.kernel, shape.stride, strict=True
            )
        )
    elif shape.kind == "transposed":
        size = tuple(
            (pixels - 1) * stride - 2 * padding + kernel
            for pixels, padding, kernel, stride in zip(
                shape.size, shape.padding, shape.kernel, shape.stride, strict=True
            )
        )
    return Shape(
        "pool", shape.out_channels, shape.out_channels, size=size, precision=shape.precision
    )


def _take_turns(shapes: Sequence[Shape], progress: Progress | None) -> dict[str, float]:
    """Microseconds per copy, all shapes measured in turns."""
    runs = []
    for done, shape in enumerate(shapes):
        run = _runner(shape)
        for _ in range(3):
            run()
        start = perf_counter_ns()
        run()
        once_ms = max(1e-3, (perf_counter_ns() - start) / 1e6)
        runs.append((run, int(min(200, max(5, ROUND_MS / once_ms)))))
        if progress is not None:
            progress(done // 2, len(shapes))
    best_us = np.full(len(shapes), np.inf)
    for turn in range(ROUNDS):
        for place, (run, repeats) in enumerate(runs):
            samples_ns = np.empty(repeats)
            for repeat in range(repeats):
                start = perf_counter_ns()
                run()
                samples_ns[repeat] = perf_counter_ns() - start
            best_us[place] = min(best_us[place], float(np.median(samples_ns)) / 1e3 / COPIES)
        if progress is not None:
            half = len(shapes) // 2
            progress(half + (len(shapes) - half) * (turn + 1) // ROUNDS, len(shapes))
    return {shape.key: float(time_us) for shape, time_us in zip(shapes, best_us, strict=True)}


def _runner(shape: Shape) -> Callable[[], Any]:
    """A function that runs ``COPIES`` copies of the layer once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        build_graph(shape).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    dtype = np.uint8 if shape.precision == "int8" else np.float32
    random = np.random.default_rng(0)
    dims = (1, shape.in_channels, *shape.size)
    feed = {"x": random.integers(0, 255, dims).astype(dtype)}
    return lambda: session.run(None, feed)
