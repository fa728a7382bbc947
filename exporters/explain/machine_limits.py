"""What this machine does at best in ONNX Runtime, measured in the run that is explained.

bandwidth     bytes read and written per second by a copy, at several sizes: caches are faster than memory
call          of a model that does nothing
node, conv    of the smallest kernel of a kind: what a layer costs before it computes
MACs          per second of a convolution that suits every kernel: 64 to 64 channels, 3x3, on 32x32 values
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.sessions.ort import OrtCpuSession

if TYPE_CHECKING:
    from onnx import ModelProto

SIZES_BYTES = (1 << 14, 1 << 17, 1 << 20, 1 << 23, 1 << 26)
CHANNELS, SIDE, LEAST, CHAIN, OPSET = 64, 32, 16, 32, 17


@dataclass(frozen=True)
class Machine:
    """Limits, all of them achieved here.

    Attributes:
        threads: That the limits of ONNX Runtime were measured with.
        bandwidth: (bytes of a working set, bytes per second), in ascending order.
        call_us: Microseconds of an empty call.
        node_us: Microseconds of the smallest kernel without weights.
        int8_conv_us: Of the smallest integer convolution; ``float_conv_us`` of the other.
        int8_macs_per_s: MACs per second of the integer convolution; ``float_macs_per_s`` of the other.
    """

    threads: int
    bandwidth: tuple[tuple[int, float], ...]
    call_us: float
    node_us: float
    int8_conv_us: float
    float_conv_us: float
    int8_macs_per_s: float
    float_macs_per_s: float

    def copy_us(self, size_bytes: float) -> float:
        """Microseconds that moving ``size_bytes`` takes at the bandwidth of so large a working set."""
        rate = next((rate for size, rate in self.bandwidth if size >= size_bytes), None)
        return 1e6 * size_bytes / (self.bandwidth[-1][1] if rate is None else rate)

    def launch_us(self, integer: bool, weighted: bool) -> float:
        """What the smallest kernel of a kind takes."""
        if not weighted:
            return self.node_us
        return self.int8_conv_us if integer else self.float_conv_us

    def macs_per_s(self, integer: bool) -> float:
        return self.int8_macs_per_s if integer else self.float_macs_per_s

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_machine(threads: int = 1) -> Machine:
    """Measure the limits; takes about a second.

    Raises:
        MissingDependency: onnx or onnxruntime is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        one_us = _session_us(_chain(1), folder, threads)
        many_us = _session_us(_chain(CHAIN), folder, threads)
        peaks_us = [
            _convolution_us(kind, CHANNELS, SIDE, folder, threads) for kind in (True, False)
        ]
        least_us = [_convolution_us(kind, LEAST, 1, folder, threads) for kind in (True, False)]
    node_us = max((many_us - one_us) / (CHAIN - 1), 0.0)
    macs = CHANNELS * CHANNELS * 9 * SIDE * SIDE
    return Machine(
        threads,
        _bandwidth(),
        max(one_us - node_us, 0.0),
        node_us,
        *least_us,
        *(1e6 * macs / peak_us for peak_us in peaks_us),
    )


def _convolution_us(integer: bool, channels: int, side: int, folder: Path, threads: int) -> float:
    """From nine convolutions beside one, so that what surrounds them does not count."""
    one_us, nine_us = (
        _session_us(_convolutions(integer, length, channels, side), folder, threads)
        for length in (1, 9)
    )
    return max(nine_us - one_us, 1e-3) / 8


def _bandwidth() -> tuple[tuple[int, float], ...]:
    found = []
    for size in SIZES_BYTES:
        source = np.ones(size // 2, np.uint8)  # a copy's working set is its source and its result
        copy = functools.partial(np.copyto, np.empty_like(source), source)
        found.append((size, 1e6 * size / _best_us(copy)))
    return tuple(found)


def _best_us(call: Callable[[], object], for_s: float = 0.05) -> float:
    """The shortest of several means: what the machine can do when nothing else does."""
    call()
    best_us, until = float("inf"), time.perf_counter() + for_s
    calls = 1
    while time.perf_counter() < until:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        spent_us = 1e6 * (time.perf_counter() - start)
        if spent_us < 500:  # too short for the clock
            calls *= 2
            continue
        best_us = min(best_us, spent_us / calls)
    return best_us if best_us < float("inf") else spent_us / calls


def _session_us(model: ModelProto, folder: Path, threads: int) -> float:
    import onnx

    path = folder / "probe.onnx"
    onnx.save(model, str(path))
    with closing(OrtCpuSession(path, threads)) as session:
        shape = tuple(size or 1 for size in session.inputs[0].shape)
        feeds = {session.inputs[0].name: np.ones(shape, np.float32)}
        return _best_us(lambda: session.run(feeds), 0.15)


def _chain(length: int) -> ModelProto:
    """So many kernels in a row on one value."""
    from onnx import helper

    nodes = [
        helper.make_node("Softplus", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(length)
    ]
    nodes[-1].output[0] = "y"
    return _model(nodes, [], [1])


def _convolutions(integer: bool, length: int, channels: int, side: int) -> ModelProto:
    """So many convolutions in a row, all between two Q/DQ pairs or all in float."""
    from onnx import helper, numpy_helper

    codes = np.random.default_rng(0).integers(-127, 128, (channels, channels, 3, 3))
    constants: dict[str, Any] = {"w": codes.astype(np.float32) / 127}
    nodes, x, weight = [], "x", "w"

    def pair(value: str, out: str) -> list[Any]:
        grid = ["step", "zero"]
        return [
            helper.make_node("QuantizeLinear", [value, *grid], [f"{out}.q"]),
            helper.make_node("DequantizeLinear", [f"{out}.q", *grid], [out]),
        ]

    if integer:
        constants = {
            "codes": codes.astype(np.int8),
            "scale": np.full(channels, 1 / 127, np.float32),
            "step": np.float32(0.02),
            "zero": np.uint8(0),
        }
        nodes = pair("x", "xd")
        nodes.append(helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0))
        x = "xd"
    for i in range(length):
        nodes.append(helper.make_node("Conv", [x, weight], [f"c{i}"], pads=[1] * 4))
        x = f"c{i}"
        if integer:
            nodes += pair(x, f"d{i}")
            x = f"d{i}"
    nodes[-1].output[0] = "y"
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    return _model(nodes, tensors, [1, channels, side, side])


def _model(nodes: list[Any], constants: list[Any], shape: list[int]) -> ModelProto:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
