"""Samples ready to be drawn: uint8 images and labels in three disjoint splits, with their facts.

Axes: B batch, N samples of a split, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from deploy.errors import DataError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Preprocess:
    """What turns pixels into the network's input: ``(pixel / 255 - mean) / std``, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """uint8 pixels to float32, channels last, on the same device; the same bytes on any."""
        images = images_BCHW.to(torch.float32, memory_format=torch.channels_last)
        white, mean, std = _constants(self, tuple(images.shape[1:]), str(images.device))
        return images.div_(white).sub_(mean).div_(std)

    def to_json(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Preprocess:
        return cls(tuple(map(float, record["mean"])), tuple(map(float, record["std"])))


@lru_cache(maxsize=16)
def _constants(how: Preprocess, shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """255, mean and std as tensors on the device; made once, because that waits for a GPU.

    Mean and std are written out for a whole image: an inner loop over three channels takes four
    times as long on a CPU. 255 is a tensor of the device because CUDA multiplies by the reciprocal
    of a number, which is not the same bytes.
    """
    written = [
        torch.tensor(values)
        .view(1, -1, 1, 1)
        .expand(1, *shape)
        .contiguous(memory_format=torch.channels_last)
        .to(device)
        for values in (how.mean, how.std)
    ]
    return torch.full((1, 1, 1, 1), 255.0, device=device), written[0], written[1]


@dataclass(frozen=True)
class Augment:
    """Random changes of training images.

    Attributes:
        crop: Pixels of zero padding on each side before a crop of the original size.
        flip: Whether each image is mirrored left and right with probability one half.
    """

    crop: int = 0
    flip: bool = False


class Split:
    """Samples by index; images are read from memory or decoded on demand.

    Attributes:
        labels_N: int64 class indices.
    """

    def __init__(self, labels_N: Tensor, read: Callable[[Tensor], Tensor]) -> None:
        self.labels_N = labels_N
        self._read = read
        self._pixels: tuple[Tensor, Tensor | None] | None = None  # [M, H, W, C], and which of them
        self._copies: dict[str, Split] = {}

    @classmethod
    def in_memory(cls, pixels_NHWC: Tensor, labels_N: Tensor) -> Split:
        """Samples whose uint8 pixels are held in memory, channels last."""
        split = cls(labels_N, lambda index: pixels_NHWC[index].permute(0, 3, 1, 2))
        split._pixels = (pixels_NHWC, None)
        return split

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def device(self) -> str:
        """Where labels and, if they are held in memory, pixels are."""
        return str(self.labels_N.device)

    @property
    def size_bytes(self) -> int | None:
        """Of the pixels; None where they are decoded on demand."""
        return None if self._pixels is None else len(self) * self._pixels[0].shape[1:].numel()

    def images(self, index_B: Tensor) -> Tensor:
        """uint8 ``[B, C, H, W]`` in the order of ``index_B``; channels last when C > 1."""
        return self._read(index_B)

    def part(self, index_N: Tensor) -> Split:
        """The samples at ``index_N``, in this order, without a copy of their pixels."""
        split = Split(self.labels_N[index_N], lambda index: self._read(index_N[index]))
        if self._pixels is not None:
            pixels_MHWC, which_N = self._pixels
            split._pixels = (pixels_MHWC, index_N if which_N is None else which_N[index_N])
        return split

    def is_on(self, device: str) -> bool:
        """Whether ``on`` has nothing to copy."""
        here = torch.device(device).type == self.labels_N.device.type
        return self._pixels is not None and (here or device in self._copies)

    def on(self, device: str) -> Split:
        """The same samples, in memory on a device; copied once, and kept as long as this split.

        Only for samples whose pixels are held in memory.
        """
        assert self._pixels is not None, "pixels that are decoded on demand are on no device"
        if torch.device(device).type == self.labels_N.device.type:
            return self
        if device not in self._copies:
            pixels_MHWC, which_N = self._pixels
            own_NHWC = pixels_MHWC if which_N is None else pixels_MHWC[which_N]
            labels_N = self.labels_N.to(device)
            self._copies[device] = Split.in_memory(own_NHWC.to(device), labels_N)
        return self._copies[device]


@dataclass(frozen=True)
class Data:
    """Three disjoint splits and what they have in common.

    Attributes:
        classes: Name of each class; the position is the label.
        input_shape: (C, H, W) of every image.
        skipped: Names of the corrupt samples that were left out.
        fingerprint: Hash of the content, whatever folder it lies in.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    input_shape: Shape
    preprocess: Preprocess
    augment: Augment
    skipped: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """What a kind of data hands over: the splits it has, before missing ones are cut.

    Attributes:
        parts: ``train`` and, where they exist, ``validation`` and ``test``.
    """

    parts: Mapping[str, Split]
    classes: tuple[str, ...]
    input_shape: Shape
    skipped: tuple[str, ...]
    fingerprint: str


def check_labels(where: str, labels_N: Tensor, classes: int) -> None:
    """Refuse labels that are no class index.

    Raises:
        DataError: A label is outside [0, classes).
    """
    outside = ((labels_N < 0) | (labels_N >= classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: label {int(labels_N[row])} in row {row}; accepted: 0 to {classes - 1}; "
            "remove or relabel such samples (-1 often marks hidden labels)"
        )
