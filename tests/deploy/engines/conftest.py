"""Small Q/DQ graphs, and stand-ins for TensorRT's bindings and for CUDA that record and compute."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.engines.bindings import Bindings
from deploy.engines.cuda import OutOfMemory
from deploy.engines.driver import Driver, Gpu
from deploy.engines.plan_file import FORMAT, FORMAT_VERSION, side_path
from deploy.manifest import sha256_of

ZERO = np.int8(0)


def qdq_network(
    *,
    batch: int | None = None,
    zero_point: Any = ZERO,
    scale: float = 0.05,
    quantize_weights: bool = True,
    operator: str = "Relu",
    opset: int = 19,
    half: bool = False,
) -> onnx.ModelProto:
    """Conv, ReLU, pool over int8 Q/DQ: input ``x`` [batch, 16, 8, 8], output ``y`` [batch, 32]."""
    rng = np.random.default_rng(0)
    real: Any = np.float16 if half else np.float32
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    w_OIHW = rng.integers(-127, 127, (32, 16, 3, 3)).astype(np.int8)
    constants = {"xs": real(scale), "xz": zero_point, "b": np.zeros(32, real)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dequantize_x"),
    ]
    if quantize_weights:
        constants.update(w=w_OIHW, ws=np.full(32, 0.01, real), wz=np.zeros(32, np.int8))
        nodes.append(
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=0)
        )
    else:
        constants["wd"] = w_OIHW.astype(real) / 100
        nodes = []
    nodes += [
        helper.make_node(
            "Conv", ["xd" if nodes else "x", "wd", "b"], ["c"], "conv", pads=[1, 1, 1, 1]
        ),
        helper.make_node(operator, ["c"], ["r"], "act"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["y"], "flat"),
    ]
    size: Any = "batch" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, [size, 16, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [size, 32])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.fixture
def network() -> Callable[..., onnx.ModelProto]:
    return qdq_network


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Writes such a network to a file."""

    def write(**how: Any) -> Path:
        path = tmp_path / "net.onnx"
        onnx.save(qdq_network(**how), str(path))
        return path

    return write


ORIN = Gpu("Orin", "8.7", 16, 32 << 30, True)


@pytest.fixture
def driver() -> Driver:
    return Driver("12.6", (ORIN,))


class RecordingCuda:
    """``Cuda`` whose device memory is a dict; every call is written down."""

    def __init__(self, memory_bytes: int = 1 << 20) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.memory: dict[int, np.ndarray] = {}
        self.hosts: list[int] = []
        self.graphs: dict[int, Callable[[], None] | None] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.left = memory_bytes
        self.next = 4096
        self.closed = False
        self.refuse_capture = False

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def since(self, mark: int) -> list[str]:
        return [name for name in self.names()[mark:] if name != "make_current"]

    def make_current(self) -> None:
        assert not self.closed
        self.calls.append(("make_current",))

    def allocate(self, size_bytes: int) -> int:
        if size_bytes > self.left:
            raise OutOfMemory("CUDA: cuMemAlloc_v2 failed with 2 (out of memory)")
        self.left -= size_bytes
        self.next += 4096 * (1 + size_bytes // 4096)
        self.memory[self.next] = np.zeros(size_bytes, np.uint8)
        self.calls.append(("allocate", size_bytes, self.next))
        return self.next

    def free(self, address: int) -> None:
        self.left += self.memory.pop(address).nbytes
        self.calls.append(("free", address))

    def allocate_host(self, size_bytes: int) -> np.ndarray:
        block = np.zeros(size_bytes, np.uint8)
        self.hosts.append(block.ctypes.data)
        return block

    def free_host(self, block: np.ndarray) -> None:
        self.hosts.remove(block.ctypes.data)

    def create_stream(self) -> int:
        self.calls.append(("create_stream",))
        return 77

    def destroy_stream(self, stream: int) -> None:
        self.calls.append(("destroy_stream", stream))

    def copy_to_device(self, address: int, block: np.ndarray, size: int, stream: int) -> None:
        self.memory[address][:size] = block[:size]
        self.calls.append(("copy_to_device", address, size, stream))

    def copy_to_host(self, block: np.ndarray, address: int, size: int, stream: int) -> None:
        block[:size] = self.memory[address][:size]
        self.calls.append(("copy_to_host", address, size, stream))

    def synchronize(self, stream: int) -> None:
        self.calls.append(("synchronize", stream))

    def begin_capture(self, stream: int) -> None:
        self.capturing = []
        self.calls.append(("begin_capture", stream))

    def end_capture(self, stream: int) -> int:
        from deploy.errors import DeviceError

        work, self.capturing = self.capturing or [], None
        self.calls.append(("end_capture", stream))
        if self.refuse_capture:
            raise DeviceError("CUDA: cuStreamEndCapture failed with 901 (invalidated)")
        self.graphs[len(self.graphs) + 1] = lambda: [step() for step in work] and None
        return len(self.graphs)

    def launch_graph(self, graph: int, stream: int) -> None:
        work = self.graphs[graph]
        assert work is not None, "the graph was destroyed"
        work()
        self.calls.append(("launch_graph", graph, stream))

    def destroy_graph(self, graph: int) -> None:
        self.graphs[graph] = None
        self.calls.append(("destroy_graph", graph))

    def elapsed_ms(self, work: Callable[[], None], stream: int) -> float:
        work()
        self.calls.append(("elapsed_ms", stream))
        return 0.25

    def close(self) -> None:
        assert not self.memory, "device memory was not given back"
        assert not self.hosts
        self.closed = True


@pytest.fixture
def cuda() -> RecordingCuda:
    return RecordingCuda()


class FakeContext:
    """Doubles: ``y = 2 * x`` over the recording CUDA's memory."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.profile = 0
        self.profiler: Any = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile, self.shape = index, ()
        self.engine.cuda.calls.append(("profile", index))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.engine.cuda.calls.append(("set_input_shape", name, tuple(shape)))
        low, _, high = self.engine.profiles[self.profile]
        self.shape = tuple(shape)
        return low <= shape[0] <= high

    def infer_shapes(self) -> list[str]:
        self.engine.cuda.calls.append(("infer_shapes",))
        return list(self.engine.unknown)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.shape[1:]) if self.engine.data_dependent else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.engine.cuda.calls.append(("set_tensor_address", name, address))
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.cuda
        cuda.calls.append(("execute_async_v3", stream))
        if self.engine.refuse_to_run:
            return False
        size = 4 * int(np.prod(self.shape))
        addresses = dict(self.addresses)

        def work() -> None:
            x = cuda.memory[addresses["x"]][:size].view(np.float32)
            cuda.memory[addresses["y"]][:size] = (2 * x).view(np.uint8)

        if cuda.capturing is not None:
            cuda.capturing.append(work)
        else:
            work()
        if self.profiler is not None:
            self.profiler.report_layer_time("double", 0.5)
        return True


class FakeEngine:
    """One input and one output, [batch, 3] float32."""

    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, cuda: RecordingCuda, trt: SimpleNamespace) -> None:
        self.cuda, self.trt = cuda, trt
        self.profiles = [(1, 1, 4)]
        self.unknown: list[str] = []
        self.data_dependent = self.refuse_to_run = self.no_context = False
        self.dtype = "FLOAT"
        self.contexts: list[FakeContext] = []

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def create_execution_context(self) -> FakeContext | None:
        if self.no_context:
            return None
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name == "x" else modes.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3)

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.dtype)

    def get_tensor_location(self, name: str) -> str:
        return self.trt.TensorLocation.DEVICE

    def create_engine_inspector(self) -> SimpleNamespace:
        tensor = {"Name": "x", "Format/Datatype": "Row major linear FP32"}
        layer = {"Name": "double", "LayerType": "PointWise", "Inputs": [tensor]}
        text = json.dumps({"Layers": [layer]})
        inspector = SimpleNamespace(execution_context=None)

        def describe(form: str) -> str:
            assert inspector.execution_context.shape == (1, 3)
            return text

        inspector.get_engine_information = describe
        return inspector

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(batch, 3) for batch in self.profiles[index]]


@pytest.fixture
def bindings(cuda: RecordingCuda) -> Iterator[Bindings]:
    """Bindings of a runtime whose only engine is a ``FakeEngine``, at ``bindings.trt.engine``."""
    from deploy.engines import messages

    trt = SimpleNamespace(
        __version__="10.3.0",
        ILogger=object,
        IProfiler=object,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        TensorLocation=SimpleNamespace(HOST="host", DEVICE="device"),
    )
    trt.engine = FakeEngine(cuda, trt)
    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: trt.engine)
    messages._loggers.clear()
    yield Bindings(trt, "tensorrt")
    messages._loggers.clear()


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Path]:
    """Writes a plan of a few bytes with its side file; keyword arguments replace keys of it."""

    def write(data: bytes = b"plan", name: str = "net.plan", **changed: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "plan": {"sha256": sha256_of(path), "size_bytes": len(data)},
            "onnx": {"file": "net.onnx", "sha256": "0" * 64},
            "runtime": {"flavour": "tensorrt", "version": "10.3.0"},
            "platform": {"system": os.uname().sysname, "machine": os.uname().machine},
            "gpu": ORIN.__dict__,
            "portable": {"versions": False, "gpus": None},
            "settings": {},
            "precision": {},
            "layers": [],
            **changed,
        }
        side_path(path).write_text(json.dumps(about))
        return path

    return write
