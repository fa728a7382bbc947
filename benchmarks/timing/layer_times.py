"""How long each layer of an ONNX file takes in ONNX Runtime, by its own profiler.

The profiler stamps whole microseconds, rounded down, around every kernel it runs, and writes a JSON file of
events. A layer's time is the mean of the middle 80% of its calls, plus the half microsecond that rounding
takes on average: robust like a median, finer than the clock's step.

Profiling itself costs microseconds, partly inside what it stamps: the sum over the layers is larger than the
call is without a profiler. So calls are timed without it too, and each layer is relieved of the
same amount: the excess over the number of layers, at most what the cheapest layer took. What then is left of
the excess is taken off in proportion. ``Profile`` holds that amount and both times of a call.
https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from deploy.errors import ConfigError, DeviceError
from deploy.sessions.ort import OrtCpuSession
from deploy.sessions.ort_runtime import import_onnxruntime, open_model, sequential_options
from deploy.sessions.session import Feeds

CLOCK_STEP_US = 1.0
WARM_UP_CALLS = 10
_SUFFIX = "_kernel_time"
# ONNX Runtime names a fused kernel after the node it replaces, and what its layout pass makes likewise.
_DERIVED = re.compile(r"(_token_\d+|_nchwc|_nhwc)+$")
_FORMS = re.compile(r"^(QLinear|DynamicQuantize|Fused|NhwcFused|Nhwc|Q(?=Gemm|Attention))")


@dataclass(frozen=True)
class Value:
    """One input or output of a kernel, as it was executed; a constant may have no shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerTime:
    """One kernel of the graph that is executed.

    Attributes:
        name: The node of the file it was made from, or the name that ONNX Runtime gave it.
        op_type: The operator that it computes, e.g. ``Conv``.
        kernel: What was executed, e.g. ``QLinearConv``.
        time_us: Microseconds of one call, without what the profiler puts into it.
        share: Of the sum over all layers, in [0, 1].
        stamped_us: What the profiler said.
        calls: How many calls the time is taken from.
        parameter_bytes: Size of its constants; ``activation_bytes`` of what it read beside them and
            ``output_bytes`` of what it wrote.
    """

    name: str
    op_type: str
    kernel: str
    time_us: float
    share: float
    stamped_us: float = 0.0
    calls: int = 0
    parameter_bytes: int = 0
    activation_bytes: int = 0
    output_bytes: int = 0
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """Layers in the order of execution, and what a whole call takes with and without the profiler.

    Both are medians in microseconds, of calls of two sessions in alternating blocks. ``stamp_us`` is what
    was taken off each layer's time.
    """

    layers: tuple[LayerTime, ...]
    calls: int
    threads: int
    call_us: float
    profiled_call_us: float
    stamp_us: float

    @property
    def profiler_us(self) -> float:
        """What profiling adds to a call."""
        return self.profiled_call_us - self.call_us

    @property
    def layers_us(self) -> float:
        return sum(layer.time_us for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "profiler_us": self.profiler_us,
            "layers_us": self.layers_us,
            "clock_step_us": CLOCK_STEP_US,
        }


def measure_layers(
    model: Path, feeds: Feeds, *, threads: int = 1, at_least: int = 50
) -> list[LayerTime]:
    """Time of every kernel of ``model`` on ``feeds``; ``profile_layers`` says what it cost to know.

    Raises:
        ConfigError, StorageError, DeviceError, MissingDependency: As ``profile_layers``.
    """
    return list(profile_layers(model, feeds, threads=threads, at_least=at_least).layers)


def profile_layers(
    model: Path,
    feeds: Feeds,
    *,
    threads: int = 1,
    at_least: int = 50,
    at_least_s: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Run ``model`` with and without the profiler, at least so many times and seconds each.

    The first calls are not counted. ``progress`` is told how many calls are done, of how many.

    Raises:
        ConfigError: ``at_least`` is below 1.
        StorageError: There is no such file.
        DeviceError: ONNX Runtime cannot load it, refuses the feeds, or wrote no profile.
        MissingDependency: onnxruntime is not installed.
    """
    if at_least < 1:
        raise ConfigError(f"layer times: at_least is {at_least}; it must be 1 or more")
    plain_us: list[float] = []
    profiled_us: list[float] = []
    with contextlib.closing(OrtCpuSession(model, threads)) as plain, tempfile.TemporaryDirectory(
        prefix="layer-times-"
    ) as scratch:
        profiled = _profiled_session(Path(model), plain, Path(scratch, "profile"))
        for _ in range(WARM_UP_CALLS):
            plain.run(feeds)  # refuses wrong feeds in words
            profiled.run(None, feeds)
        start = time.perf_counter()
        calls, total = 0, at_least
        while calls < at_least or time.perf_counter() - start < at_least_s:
            block = min(10, at_least - calls) if calls < at_least else 10
            _time(lambda: plain.run(feeds), block, plain_us)
            _time(lambda: profiled.run(None, feeds), block, profiled_us)
            calls += block
            if progress is not None:
                spent_s = time.perf_counter() - start
                total = max(at_least, round(calls * at_least_s / max(spent_s, 1e-9)))
                progress(min(calls, total), total)
        written = Path(profiled.end_profiling())
        try:
            events = json.loads(written.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"{model}: ONNX Runtime wrote no whole profile ({error}); "
                "free some space for temporary files"
            ) from error
    call_us = statistics.median(plain_us)
    layers, stamp_us = relieve(layers_of(events, WARM_UP_CALLS), call_us)
    return Profile(tuple(layers), calls, threads, call_us, statistics.median(profiled_us), stamp_us)


def relieve(layers: Sequence[LayerTime], call_us: float) -> tuple[list[LayerTime], float]:
    """The layers without what profiling adds to each, and that amount; see the module's docstring."""
    stamped_us = [layer.stamped_us for layer in layers]
    excess_us = (sum(stamped_us) - call_us) / len(layers)
    stamp_us = max(0.0, min(excess_us, min(stamped_us)))
    whole_us = sum(stamped_us) - stamp_us * len(layers)
    if whole_us <= 0:  # layers of one and the same time, all of it the profiler's
        share = 1 / len(layers)
        return [replace(layer, time_us=0.0, share=share) for layer in layers], stamp_us
    kept = min(1.0, call_us / whole_us)
    return [
        replace(
            layer,
            time_us=(layer.stamped_us - stamp_us) * kept,
            share=(layer.stamped_us - stamp_us) / whole_us,
        )
        for layer in layers
    ], stamp_us


def layers_of(events: Sequence[Mapping[str, Any]], warm_up: int = 0) -> list[LayerTime]:
    """The layers of a profile's events as stamped, without the first ``warm_up`` calls of each.

    >>> event = {"cat": "Node", "name": "conv_token_3_kernel_time", "dur": 7}
    >>> event["args"] = {"op_name": "QLinearConv", "node_index": "4"}
    >>> [(layer.name, layer.op_type, layer.time_us) for layer in layers_of([event] * 5)]
    [('conv', 'Conv', 7.5)]
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(_SUFFIX):
            found[event["name"], event["args"].get("node_index", "")].append(event)
    if not found:
        raise DeviceError(
            "layer times: the profile holds no kernel; use a build of ONNX Runtime with its profiler"
        )
    times_us = {
        key: _middle([float(event["dur"]) for event in seen[warm_up:] or seen]) + CLOCK_STEP_US / 2
        for key, seen in found.items()
    }
    whole_us = sum(times_us.values())
    layers = []
    for (name, index), seen in found.items():
        args, time_us = seen[-1]["args"], times_us[name, index]
        kernel = str(args.get("op_name", ""))
        layers.append(
            LayerTime(
                source_name(name[: -len(_SUFFIX)]) or f"{kernel}_{index}",
                _FORMS.sub("", kernel),
                kernel,
                time_us,
                time_us / whole_us,
                time_us,
                len(seen[warm_up:] or seen),
                int(args.get("parameter_size", 0)),
                int(args.get("activation_size", 0)),
                int(args.get("output_size", 0)),
                _values(args.get("input_type_shape", ())),
                _values(args.get("output_type_shape", ())),
            )
        )
    return layers


def source_name(name: str) -> str:
    """The node of the file that an executed node was made from.

    >>> source_name("layer1/conv_token_12")
    'layer1/conv'
    """
    return _DERIVED.sub("", name)


def _values(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Value, ...]:
    return tuple(Value(dtype, tuple(shape)) for entry in entries for dtype, shape in entry.items())


def _middle(times: list[float]) -> float:
    """Mean without a tenth at each end."""
    times.sort()
    cut = len(times) // 10
    kept = times[cut : len(times) - cut]
    return sum(kept) / len(kept)


def _time(call: Callable[[], object], calls: int, times_us: list[float]) -> None:
    """Time ``calls`` calls after an untimed one, whose caches still hold the other session."""
    call()
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times_us.append((time.perf_counter() - start) * 1e6)


def _profiled_session(model: Path, plain: OrtCpuSession, prefix: Path) -> Any:
    """A session that is ``plain`` but for its profiler."""
    onnxruntime = import_onnxruntime(model)
    options = sequential_options(onnxruntime, model, plain.threads, plain.settings)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return open_model(onnxruntime, model, options, "CPUExecutionProvider", {})
