"""An engine's inputs and outputs in memory: on the device, and pinned on the host beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deploy.engines.cuda import Cuda, OutOfMemory
from deploy.errors import DeviceError
from deploy.sessions.session import Port

# TensorRT refuses null addresses, also of tensors without elements.
_LEAST_BYTES = 1


@dataclass
class _Room:
    address: int
    block: np.ndarray
    size_bytes: int


class Buffers:
    """Memory per tensor.  It only grows, so that addresses stay where shapes come back."""

    def __init__(self, cuda: Cuda, model: str) -> None:
        self._cuda = cuda
        self._model = model
        self._rooms: dict[str, _Room] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, np.dtype] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes on the device, and as many on the host."""
        return sum(room.size_bytes for room in self._rooms.values())

    def fit(self, port: Port, shape: tuple[int, ...]) -> int:
        """Make room for a tensor of this shape; returns its device address.

        Raises:
            DeviceError: Memory ran out.
        """
        dtype = np.dtype(port.dtype)
        needed = max(_LEAST_BYTES, math.prod(shape) * dtype.itemsize)
        room = self._rooms.get(port.name)
        if room is None or room.size_bytes < needed:
            self._drop(port.name)
            try:
                address = self._cuda.allocate(needed)
                try:
                    block = self._cuda.allocate_host(needed)
                except DeviceError:
                    self._cuda.free(address)
                    raise
            except OutOfMemory as error:
                raise DeviceError(
                    f"{self._model}: out of memory for {port.name!r} of shape {shape} "
                    f"({needed} bytes on the device and on the host; {error}); run a smaller "
                    "batch, or close what else uses the GPU's memory"
                ) from error
            room = self._rooms[port.name] = _Room(address, block, needed)
        self._shapes[port.name], self._dtypes[port.name] = shape, dtype
        return room.address

    def send(self, name: str, value: np.ndarray, stream: int) -> None:
        """Start the copy of an input to the device."""
        room, size = self._rooms[name], value.nbytes
        self._view(name)[...] = value
        self._cuda.copy_to_device(room.address, room.block, size, stream)

    def start_fetch(self, name: str, stream: int) -> None:
        """Start the copy of an output to the host."""
        room, size = self._rooms[name], self._view(name).nbytes
        self._cuda.copy_to_host(room.block, room.address, size, stream)

    def fetched(self, name: str) -> np.ndarray:
        """An output after the stream was synchronized; the array is the caller's."""
        return self._view(name).copy()

    def close(self) -> None:
        for name in list(self._rooms):
            self._drop(name)

    def _view(self, name: str) -> np.ndarray:
        shape, dtype = self._shapes[name], self._dtypes[name]
        size = math.prod(shape) * dtype.itemsize
        return self._rooms[name].block[:size].view(dtype).reshape(shape)

    def _drop(self, name: str) -> None:
        room = self._rooms.pop(name, None)
        if room is not None:
            self._cuda.free(room.address)
            self._cuda.free_host(room.block)
