"""Samples ready to be drawn: uint8 images and labels in three disjoint splits, with their facts.

Axes: B batch, N samples of a split, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        """uint8 pixels to float32, channels last."""
        shape = (1, len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, device=images_BCHW.device).view(shape)
        std = torch.tensor(self.std, device=images_BCHW.device).view(shape)
        images = images_BCHW.to(torch.float32, memory_format=torch.channels_last)
        return images.div_(255).sub_(mean).div_(std)

    def to_json(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Preprocess:
        return cls(tuple(map(float, record["mean"])), tuple(map(float, record["std"])))


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

    @classmethod
    def in_memory(cls, pixels_NHWC: Tensor, labels_N: Tensor) -> Split:
        """Samples whose uint8 pixels are held in memory, channels last."""
        return cls(labels_N, lambda index: pixels_NHWC[index].permute(0, 3, 1, 2))

    def __len__(self) -> int:
        return len(self.labels_N)

    def images(self, index_B: Tensor) -> Tensor:
        """uint8 ``[B, C, H, W]`` in the order of ``index_B``; channels last when C > 1."""
        return self._read(index_B)

    def part(self, index_N: Tensor) -> Split:
        """The samples at ``index_N``, in this order, without a copy of their pixels."""
        return Split(self.labels_N[index_N], lambda index: self._read(index_N[index]))


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
