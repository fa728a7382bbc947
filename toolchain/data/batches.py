"""Batches of a split, on the device that trains, with randomness that has no state.

The order depends on (seed, epoch) and the augmentation on (seed, epoch, step), so a run that
resumes in the middle of an epoch sees the same bytes as one that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deploy.errors import DataError
from toolchain.data.ahead import ahead
from toolchain.data.augment import augment
from toolchain.data.residence import resident
from toolchain.data.samples import Data, Preprocess, Split

# Batches that are decoded before a GPU asks for them.
AHEAD = 3


class Drawn(NamedTuple):
    """A batch of the training part.

    Attributes:
        images_BCHW: Augmented, normalised, float32, channels last.
        labels_B: Class indices.
        index_B: Positions in the training part.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    index_B: Tensor


def steps_per_epoch(data: Data, batch_size: int, *, drop_last: bool = True) -> int:
    """How many batches one epoch of the training part has.

    Raises:
        DataError: There are fewer samples than one batch.
    """
    count = len(data.train)
    if drop_last and count < batch_size:
        raise DataError(
            f"data: {count} training samples are less than one batch of {batch_size}; "
            f"accepted: a batch of at most {count}; lower batch_size"
        )
    return count // batch_size if drop_last else -(-count // batch_size)


def batches(
    data: Data,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    drop_last: bool = True,
    device: str = "cpu",
) -> Iterator[Drawn]:
    """The batches of one epoch on ``device``, from ``start`` on; the same bytes on any.

    Raises:
        DataError: There are fewer training samples than one batch.
    """
    steps = steps_per_epoch(data, batch_size, drop_last=drop_last)
    train = resident(data.train, device)
    order_N = torch.randperm(len(train), generator=generator_of("order", seed, epoch))
    indices = order_N.to(train.device).split(batch_size)[start:steps]
    for step, (index_B, pixels_BCHW, labels_B) in enumerate(_read(train, indices, device), start):
        generator = generator_of("augment", seed, epoch, step)
        images_BCHW = data.preprocess.normalize(augment(pixels_BCHW, data.augment, generator))
        yield Drawn(images_BCHW, labels_B, index_B)


def evaluation_batches(
    split: Split, preprocess: Preprocess, batch_size: int = 500, *, device: str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once, in order, not augmented, on ``device``; the last batch may be smaller."""
    split = resident(split, device)
    indices = torch.arange(len(split), device=split.device).split(batch_size)
    for _, pixels_BCHW, labels_B in _read(split, indices, device):
        yield preprocess.normalize(pixels_BCHW), labels_B


def _read(
    split: Split, indices: Sequence[Tensor], device: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Index, uint8 pixels and labels of each batch on the device.

    Pixels travel as bytes, a quarter of what floats take. Where a GPU would wait for images to be
    decoded, that is done while it works on earlier ones.
    """
    read: Iterator[tuple[Tensor, Tensor]] = (
        (index_B, split.images(index_B)) for index_B in indices
    )
    if split.size_bytes is None and torch.device(device).type != "cpu":
        read = ahead(read, AHEAD)
    for index_B, pixels_BCHW in read:
        labels_B = split.labels_N[index_B]
        yield (
            index_B.to(device, non_blocking=True),
            pixels_BCHW.to(device, non_blocking=True),
            labels_B.to(device, non_blocking=True),
        )


def generator_of(purpose: str, *numbers: int) -> torch.Generator:
    """A generator of its own for each purpose and place in the run."""
    text = ":".join([purpose, *map(str, numbers)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
