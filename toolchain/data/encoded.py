"""JPEG, PNG and other encoded images to uint8 pixels: once into memory, or again for every batch.

Every image is decoded once at load, also where it is then streamed: a corrupt file in the test part
is found before hours of training and not after.  Orientation tags are not applied.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from deploy.errors import DataError, MissingDependency
from toolchain.data.samples import Shape, Split

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoding one image is too little work for a task of its own.
_CHUNK = 64


@dataclass(frozen=True)
class Encoded:
    """Images of one part, not yet decoded.

    Attributes:
        count: How many.
        read: The encoded bytes of one; OSError or None where there are none.
        name: How a message names one: its file, or its shard and row.
        labels_N: int64 class indices.
    """

    count: int
    read: Callable[[int], bytes | None]
    name: Callable[[int], str]
    labels_N: Tensor


class _CorruptError(Exception):
    """An image that cannot be decoded; becomes a DataError or is skipped."""


@dataclass(frozen=True)
class _Decoder:
    """What every image becomes: this many channels and, if given, a square of this size."""

    channels: int
    image_size: int | None
    open: Callable[[io.BytesIO], Image]

    def pixels(self, part: Encoded, index: int) -> np.ndarray:
        """uint8 ``[H, W, C]`` of one image."""
        try:
            content = part.read(index)
            if not content:
                raise _CorruptError("no bytes")
            with self.open(io.BytesIO(content)) as image:
                _refuse_deep(image, part.name(index))
                image = image.convert("L" if self.channels == 1 else "RGB")
                if self.image_size is not None:
                    image = _square(image, self.image_size)
                array = np.asarray(image)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # decoders raise a dozen types on bytes that are not an image
            raise _CorruptError(" ".join(str(error).split()) or type(error).__name__) from error
        return array[:, :, None] if array.ndim == 2 else array


def decode(
    parts: Mapping[str, Encoded],
    *,
    channels: int | None,
    image_size: int | None,
    memory_limit_mb: int,
    on_corrupt: Literal["error", "skip"],
) -> tuple[dict[str, Split], Shape, tuple[str, ...]]:
    """Splits of decoded images, the shape of all of them, and the names of the skipped ones.

    Pixels are kept in memory if those of all parts fit ``memory_limit_mb``; otherwise batches
    decode what they need.  Where ``channels`` is None, the first image says how many there are.

    Raises:
        DataError: An image is corrupt, or its shape differs and ``image_size`` is not given.
        MissingDependency: Pillow is not installed.
    """
    open_image = _pillow()
    if channels is None:
        channels = _channels_of_first(parts, open_image)
    decoder = _Decoder(channels, image_size, open_image)
    with ThreadPoolExecutor(_threads()) as pool:
        shape: tuple[int, ...] | None = None
        first = ""
        splits: dict[str, Split] = {}
        skipped: list[str] = []
        total = sum(part.count for part in parts.values())
        for part_name, part in parts.items():
            store: np.ndarray | None = None
            good: list[int] = []
            for index, array in _decoded(pool, decoder, part, range(part.count)):
                if isinstance(array, _CorruptError):
                    if on_corrupt == "error":
                        raise _corrupt(part.name(index), array)
                    skipped.append(part.name(index))
                    continue
                if shape is None:
                    shape, first = array.shape, part.name(index)
                if array.shape != shape:
                    raise _differs(part.name(index), array.shape, first, shape)
                if store is None and total * array.size <= memory_limit_mb * 2**20:
                    store = np.empty((part.count, *shape), dtype=np.uint8)
                if store is not None:
                    store[len(good)] = array
                good.append(index)
            splits[part_name] = _split(decoder, part, good, store)
    if shape is None:
        raise DataError(
            f"data: none of {total} images can be decoded, e.g. {skipped[0] if skipped else '-'}; "
            "accepted: at least one image; check the folder"
        )
    return splits, (shape[2], shape[0], shape[1]), tuple(skipped)


def _split(
    decoder: _Decoder, part: Encoded, good: Sequence[int], store: np.ndarray | None
) -> Split:
    kept_N = torch.tensor(good, dtype=torch.int64)
    labels_N = part.labels_N[kept_N]
    if store is not None:
        return Split.in_memory(torch.from_numpy(store[: len(good)]), labels_N)

    def read(index_B: Tensor) -> Tensor:
        with ThreadPoolExecutor(_threads()) as pool:
            arrays = []
            for index, array in _decoded(pool, decoder, part, kept_N[index_B].tolist()):
                if isinstance(array, _CorruptError):
                    raise _corrupt(part.name(index), array)
                arrays.append(array)
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    return Split(labels_N, read)


def _decoded(
    pool: ThreadPoolExecutor, decoder: _Decoder, part: Encoded, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray | _CorruptError]]:
    """Decode in the given order, a few chunks ahead of whoever reads."""

    def work(chunk: Sequence[int]) -> list[tuple[int, np.ndarray | _CorruptError]]:
        done: list[tuple[int, np.ndarray | _CorruptError]] = []
        for index in chunk:
            try:
                done.append((index, decoder.pixels(part, index)))
            except _CorruptError as error:
                done.append((index, error))
        return done

    size = max(1, min(_CHUNK, len(indices) // _threads()))
    chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
    ahead = 4 * _threads()
    waiting = deque(pool.submit(work, chunk) for chunk in chunks[:ahead])
    for position in range(len(chunks)):
        done = waiting.popleft().result()
        if position + ahead < len(chunks):
            waiting.append(pool.submit(work, chunks[position + ahead]))
        yield from done


def _square(image: Image, size: int) -> Image:
    """Shorter side to ``size``, bilinear with antialiasing, then the centre of the longer one."""
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), resample=2)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _channels_of_first(parts: Mapping[str, Encoded], open_image: Any) -> int:
    """1 if the first image that opens is grey, otherwise 3."""
    for part in parts.values():
        for index in range(part.count):
            try:
                with open_image(io.BytesIO(part.read(index) or b"")) as image:
                    return 1 if image.mode in ("1", "L", "LA") else 3
            except OSError:  # corrupt: `decode` names it, or skips it if asked to
                continue
    return 3


def _refuse_deep(image: Image, name: str) -> None:
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"data: {name} has pixels of mode {image.mode}; accepted: 8 bits per channel; "
            "convert such images first, Pillow would cut off their upper bits"
        )


def _corrupt(name: str, error: Exception) -> DataError:
    return DataError(
        f"data: {name} cannot be decoded ({error}); accepted: whole image files; "
        "repair or remove it, or set data.on_corrupt: skip"
    )


def _differs(name: str, shape: Sequence[int], first: str, expected: Sequence[int]) -> DataError:
    return DataError(
        f"data: {name} is {shape[0]} x {shape[1]} pixels and {first} is "
        f"{expected[0]} x {expected[1]}; accepted: one size; set data.image_size"
    )


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pillow() -> Callable[[io.BytesIO], Image]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency(
            "data: encoded images need Pillow, which is not installed; "
            "install the extra: pip install 'compress-deploy[images]'"
        ) from error
    return Image.open
