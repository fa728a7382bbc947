"""The NVIDIA driver of this machine, asked in a child process before anything is built on it.

Without a driver TensorRT's objects are empty shells: a lean runtime's segfaults at the first
attribute.  So libcuda is opened, initialised and questioned where a crash costs nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import Any, Callable

from deploy.engines.worker import Answer, Progress, Worker, WorkerDied
from deploy.errors import DeviceError

_LIBRARIES = ("libcuda.so.1", "libcuda.so")
# CUdevice_attribute, cuda.h
_MAJOR, _MINOR, _MULTIPROCESSORS, _INTEGRATED = 75, 76, 16, 18


@dataclass(frozen=True)
class Gpu:
    """A device: its name, compute capability such as ``8.7``, and whether host memory is its own."""

    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int
    integrated: bool


@dataclass(frozen=True)
class Driver:
    """What the driver answered.  ``cuda`` is the newest CUDA that it supports, such as ``12.6``."""

    cuda: str
    gpus: tuple[Gpu, ...]

    def gpu(self, index: int = 0) -> Gpu:
        """One device.

        Raises:
            DeviceError: There is none of this number.
        """
        if not 0 <= index < len(self.gpus):
            raise DeviceError(
                f"device {index}: the driver has {len(self.gpus)} GPUs, counted from 0; "
                "choose one of them"
            )
        return self.gpus[index]


_known: dict[str, Driver | DeviceError] = {}
_asking = threading.Lock()


def find_driver() -> Driver:
    """The driver, asked once per process.

    Raises:
        DeviceError: There is no driver, or it has no GPU; says what it answered.
    """
    with _asking:
        if "driver" not in _known:
            worker = Worker()
            try:
                _known["driver"] = _driver_of(worker.ask("probe", {}))
            except WorkerDied as death:
                _known["driver"] = DeviceError(f"NVIDIA driver: asking it crashed ({death})")
            except DeviceError as error:
                _known["driver"] = error
            finally:
                worker.close()
        found = _known["driver"]
    if isinstance(found, DeviceError):
        raise DeviceError(str(found))
    return found


def _driver_of(answer: Answer) -> Driver:
    return Driver(answer["cuda"], tuple(Gpu(**gpu) for gpu in answer["gpus"]))


def answer_probe(request: Answer, progress: Progress) -> Answer:
    """The worker's side of ``find_driver``."""
    return probe(ctypes.CDLL)


def probe(open_library: Callable[[str], Any]) -> Answer:
    """Ask libcuda, opened by ``open_library``.

    Raises:
        DeviceError: It is not there, does not start, or sees no GPU.
    """
    cuda = _open(open_library)
    _check(cuda, "cuInit", cuda.cuInit(0))
    version = ctypes.c_int()
    _check(cuda, "cuDriverGetVersion", cuda.cuDriverGetVersion(ctypes.byref(version)))
    count = ctypes.c_int()
    _check(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    if not count.value:
        raise DeviceError(
            "NVIDIA driver: it sees no GPU; check CUDA_VISIBLE_DEVICES "
            f"({os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}) and the container's devices"
        )
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return {"cuda": cuda_version, "gpus": [_gpu(cuda, index) for index in range(count.value)]}


def _open(open_library: Callable[[str], Any]) -> Any:
    for library in _LIBRARIES:
        try:
            return open_library(library)
        except OSError as error:
            said = error
    raise DeviceError(
        f"NVIDIA driver: none on this machine ({said}); run this where the GPU is, and in a "
        "container start it with the GPU (docker run --gpus all, on a Jetson --runtime nvidia)"
    )


def _gpu(cuda: Any, index: int) -> Answer:
    device = ctypes.c_int()
    _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), index))
    name = ctypes.create_string_buffer(256)
    _check(cuda, "cuDeviceGetName", cuda.cuDeviceGetName(name, len(name), device))
    memory = ctypes.c_size_t()
    _check(cuda, "cuDeviceTotalMem", cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        status = cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        _check(cuda, "cuDeviceGetAttribute", status)
        return value.value

    return {
        "name": name.value.decode("utf-8", "replace"),
        "compute_capability": f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        "multiprocessors": attribute(_MULTIPROCESSORS),
        "memory_bytes": memory.value,
        "integrated": bool(attribute(_INTEGRATED)),
    }


def _check(cuda: Any, call: str, status: int) -> None:
    if not status:
        return
    text = ctypes.c_char_p()
    known = cuda.cuGetErrorString(status, ctypes.byref(text)) == 0
    said = text.value.decode() if known and text.value else "unknown"
    raise DeviceError(
        f"NVIDIA driver: {call} failed with {status} ({said}); check that the driver is loaded "
        "(nvidia-smi, on a Jetson: tegrastats) and that this user may open its devices"
    )
