"""Arrays in one ``.npz`` file: ``x_train, y_train, x_test, y_test``, or ``x, y``.

Also ``x_validation, y_validation``, and ``classes`` with the names.  Images are uint8, shaped
``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``; of the two outer axes, channels is the smaller.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from deploy.errors import DataError
from toolchain.data.fingerprint import of_files
from toolchain.data.samples import Source, Split

_SUFFIXES = {"train": "_train", "validation": "_validation", "test": "_test"}


def read_npz(root: Path, memory_limit_mb: int) -> Source:
    """The parts that the file has; ``root`` is the file, or a folder with exactly one.

    Raises:
        DataError: The file or an array is missing, or is not of the accepted kind.
    """
    path = _file(root)
    arrays = _arrays(path, memory_limit_mb)
    parts: dict[str, Split] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for part, (images_name, labels_name) in _pairs(path, arrays).items():
        pixels_NHWC = _pixels(path, images_name, arrays[images_name])
        labels_N = _labels(path, labels_name, arrays[labels_name], len(pixels_NHWC))
        parts[part] = Split.in_memory(torch.from_numpy(pixels_NHWC), torch.from_numpy(labels_N))
        shapes[images_name] = pixels_NHWC.shape[1:]
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(f"data: {path.name} has images of different shapes: {told}; accepted: one")
    height, width, channels = next(iter(shapes.values()))
    return Source(
        parts,
        _classes(arrays, parts["train"]),
        (channels, height, width),
        (),
        of_files(path.parent, [path]),
    )


def _file(root: Path) -> Path:
    found = sorted(root.glob("*.npz")) if root.is_dir() else [root]
    if len(found) != 1 or not found[0].is_file():
        given = f"has {len(found)} .npz files" if root.is_dir() else "is not a file"
        raise DataError(
            f"data.root: {root} {given}; accepted: an .npz file, or a folder with exactly one"
        )
    return found[0]


def _arrays(path: Path, memory_limit_mb: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
        if size_bytes > memory_limit_mb * 2**20:
            raise DataError(
                f"data.root: {path.name} unpacks to {size_bytes / 2**20:.0f} MB; accepted: up to "
                f"data.memory_limit_mb, {memory_limit_mb}; raise it"
            )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"data.root: {path.name} cannot be read ({' '.join(str(error).split())}); "
            "accepted: an .npz file of plain arrays, no objects; write it with numpy.savez"
        ) from error


def _pairs(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """The names of images and labels of each part."""
    pairs = {
        part: (f"x{suffix}", f"y{suffix}")
        for part, suffix in _SUFFIXES.items()
        if f"x{suffix}" in arrays and f"y{suffix}" in arrays
    }
    if "train" in pairs:
        return pairs
    if not pairs and "x" in arrays and "y" in arrays:
        return {"train": ("x", "y")}
    raise DataError(
        f"data.root: {path.name} has the arrays {', '.join(arrays) or 'none'}; "
        "accepted: x_train and y_train, with or without x_test and y_test, or x and y"
    )


def _pixels(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """uint8 ``[N, H, W, C]``, contiguous."""
    if array.dtype != np.uint8:
        raise DataError(
            f"data: {name} in {path.name} is {array.dtype}; accepted: uint8 pixels from 0 to 255; "
            "scale and convert it, normalisation belongs in data.preprocess"
        )
    if array.ndim == 3:
        array = array[..., None]
    outer = (array.shape[1], array.shape[-1]) if array.ndim == 4 else (0, 0)
    if outer[0] == outer[1]:
        raise DataError(
            f"data: {name} in {path.name} has shape {array.shape}; accepted: N x H x W, "
            "N x H x W x C or N x C x H x W, with fewer channels than rows or columns"
        )
    if outer[0] < outer[1]:
        array = array.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(array)


def _labels(path: Path, name: str, array: np.ndarray, count: int) -> np.ndarray:
    if array.shape == (count, 1):
        array = array[:, 0]
    if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
        raise DataError(
            f"data: {name} in {path.name} is {array.dtype} of shape {array.shape}; "
            f"accepted: {count} integers, one per image"
        )
    return array.astype(np.int64)


def _classes(arrays: Mapping[str, np.ndarray], train: Split) -> tuple[str, ...]:
    if "classes" in arrays:
        return tuple(map(str, arrays["classes"].ravel()))
    largest = int(train.labels_N.max()) if len(train) else 0
    return tuple(str(label) for label in range(max(largest, 0) + 1))
