"""The few CUDA calls that running an engine takes, over libcuda by ctypes.

The driver library comes with the driver itself, on desktops and boards alike, while cuda-python,
PyCUDA and the CUDA runtime library are installations of their own that have to fit TensorRT's CUDA
version.  So ctypes over libcuda's driver API is the smallest dependency: none.  It works in the
primary context, which is the one that TensorRT's runtime API uses.

``Cuda`` is the seam: tests run the session over a recording stand-in.
Source: CUDA driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable, Protocol

import numpy as np

from deploy.errors import DeviceError

_OUT_OF_MEMORY = 2
_CAPTURE_THREAD_LOCAL = 1
_HOST_PORTABLE = 1


class OutOfMemory(DeviceError):
    """The device, or pinned host memory, is exhausted."""


class Cuda(Protocol):
    """Device memory, pinned host memory, one stream, graphs and events.  Addresses are integers."""

    def make_current(self) -> None: ...

    def allocate(self, size_bytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size_bytes: int) -> np.ndarray: ...

    def free_host(self, block: np.ndarray) -> None: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def copy_to_device(self, address: int, block: np.ndarray, size: int, stream: int) -> None: ...

    def copy_to_host(self, block: np.ndarray, address: int, size: int, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> int: ...

    def launch_graph(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def elapsed_ms(self, work: Callable[[], None], stream: int) -> float: ...

    def close(self) -> None: ...


class CudaDriver:
    """``Cuda`` on a real device.

    Raises:
        DeviceError: There is no driver or no such device; find_driver says so in better words.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._cuda: Any = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceError(f"NVIDIA driver: none on this machine ({error})") from error
        self._call("cuInit", 0)
        handle = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(handle), device)
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._device, self._context = handle, context
        self.make_current()

    def make_current(self) -> None:
        """CUDA's current context is per thread; a session may be called from another one."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_host(self, size_bytes: int) -> np.ndarray:
        pointer = ctypes.c_void_p()
        size = ctypes.c_size_t(size_bytes)
        self._call("cuMemHostAlloc", ctypes.byref(pointer), size, ctypes.c_uint(_HOST_PORTABLE))
        block = (ctypes.c_uint8 * size_bytes).from_address(pointer.value or 0)
        return np.ctypeslib.as_array(block)

    def free_host(self, block: np.ndarray) -> None:
        self._call("cuMemFreeHost", ctypes.c_void_p(block.ctypes.data))

    def create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))  # non-blocking
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def copy_to_device(self, address: int, block: np.ndarray, size: int, stream: int) -> None:
        source = ctypes.c_void_p(block.ctypes.data)
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            source,
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def copy_to_host(self, block: np.ndarray, address: int, size: int, stream: int) -> None:
        target = ctypes.c_void_p(block.ctypes.data)
        self._call(
            "cuMemcpyDtoHAsync_v2",
            target,
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        mode = ctypes.c_int(_CAPTURE_THREAD_LOCAL)
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), mode)

    def end_capture(self, stream: int) -> int:
        """The captured work as something that can be launched."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call(
                "cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0)
            )
        finally:
            self._call("cuGraphDestroy", graph)
        return ready.value or 0

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def elapsed_ms(self, work: Callable[[], None], stream: int) -> float:
        """Time of ``work`` on the device, between two events on the stream."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        try:
            self._call("cuEventRecord", events[0], ctypes.c_void_p(stream))
            work()
            self._call("cuEventRecord", events[1], ctypes.c_void_p(stream))
            self._call("cuEventSynchronize", events[1])
            elapsed = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(elapsed), *events)
            return elapsed.value
        finally:
            for event in events:
                self._call("cuEventDestroy_v2", event)

    def close(self) -> None:
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if not status:
            return
        text = ctypes.c_char_p()
        self._cuda.cuGetErrorString(status, ctypes.byref(text))
        said = text.value.decode() if text.value else "unknown"
        kind = OutOfMemory if status == _OUT_OF_MEMORY else DeviceError
        raise kind(f"CUDA: {name} failed with {status} ({said})")
