"""The calls that reach libcuda, seen from the library's side."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from deploy.engines import cuda as module
from deploy.engines.cuda import CudaDriver, OutOfMemory
from deploy.errors import DeviceError


class Library:
    def __init__(self) -> None:
        self.called: list[tuple[str, tuple[Any, ...]]] = []
        self.failing: dict[str, int] = {}
        self.pinned = np.zeros(64, np.uint8)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            values = tuple(
                argument._obj if hasattr(argument, "_obj") else getattr(argument, "value", argument)
                for argument in arguments
            )
            self.called.append((name, values))
            if name in self.failing:
                return self.failing[name]
            outputs = {
                "cuDevicePrimaryCtxRetain": 500,
                "cuMemAlloc_v2": 0x7F00_0000_1000,
                "cuMemHostAlloc": self.pinned.ctypes.data,
                "cuStreamCreate": 600,
                "cuStreamEndCapture": 700,
                "cuGraphInstantiateWithFlags": 800,
                "cuEventElapsedTime": 1.5,
                "cuGetErrorString": b"said",
            }
            for value in values:
                if isinstance(value, ctypes._SimpleCData) and name in outputs:
                    value.value = outputs[name]
            return 0

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.called]

    def last(self, name: str) -> tuple[Any, ...]:
        return next(values for called, values in reversed(self.called) if called == name)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    return library


def test_the_primary_context_is_used_and_given_back(library: Library) -> None:
    cuda = CudaDriver()
    cuda.close()
    assert library.names() == [
        "cuInit",
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuDevicePrimaryCtxRelease",
    ]
    assert library.last("cuCtxSetCurrent") == (500,)


def test_addresses_keep_all_their_bits(library: Library) -> None:
    cuda = CudaDriver()
    address = cuda.allocate(4096)
    assert address == 0x7F00_0000_1000
    cuda.free(address)
    assert library.last("cuMemFree_v2") == (address,)


def test_pinned_memory_is_the_libraries_own(library: Library) -> None:
    cuda = CudaDriver()
    block = cuda.allocate_host(64)
    block[:3] = [1, 2, 3]
    np.testing.assert_array_equal(library.pinned[:4], [1, 2, 3, 0])
    cuda.free_host(block)
    assert library.last("cuMemFreeHost") == (library.pinned.ctypes.data,)


def test_copies_name_both_ends_and_the_stream(library: Library) -> None:
    cuda = CudaDriver()
    stream, block = cuda.create_stream(), np.zeros(16, np.uint8)
    cuda.copy_to_device(123, block, 8, stream)
    cuda.copy_to_host(block, 456, 16, stream)
    cuda.synchronize(stream)
    cuda.destroy_stream(stream)
    here = block.ctypes.data
    assert library.last("cuMemcpyHtoDAsync_v2") == (123, here, 8, 600)
    assert library.last("cuMemcpyDtoHAsync_v2") == (here, 456, 16, 600)
    assert library.last("cuStreamSynchronize") == (600,)
    assert library.last("cuStreamDestroy_v2") == (600,)


def test_a_captured_graph_is_instantiated_and_its_plan_dropped(library: Library) -> None:
    cuda = CudaDriver()
    cuda.begin_capture(600)
    graph = cuda.end_capture(600)
    assert graph == 800
    assert library.last("cuGraphDestroy")[0] == 700
    cuda.launch_graph(graph, 600)
    cuda.destroy_graph(graph)
    assert library.last("cuGraphLaunch") == (800, 600)
    assert library.last("cuGraphExecDestroy") == (800,)


def test_work_is_timed_between_events_that_are_destroyed(library: Library) -> None:
    cuda = CudaDriver()
    assert cuda.elapsed_ms(lambda: library.called.append(("work", ())), 600) == 1.5
    assert library.names()[-8:] == [
        "cuEventCreate",
        "cuEventRecord",
        "work",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventElapsedTime",
        "cuEventDestroy_v2",
        "cuEventDestroy_v2",
    ]


def test_memory_that_ran_out_has_its_own_error(library: Library) -> None:
    cuda = CudaDriver()
    library.failing = {"cuMemAlloc_v2": 2, "cuStreamCreate": 999}
    with pytest.raises(OutOfMemory, match=r"cuMemAlloc_v2 failed with 2 \(said\)"):
        cuda.allocate(1)
    with pytest.raises(DeviceError, match="cuStreamCreate failed with 999") as failed:
        cuda.create_stream()
    assert not isinstance(failed.value, OutOfMemory)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open")

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match="none on this machine"):
        CudaDriver()
