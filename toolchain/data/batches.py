"""Batches of a split, with randomness that has no state.

The order depends on (seed, epoch) and the augmentation on (seed, epoch, step), so a run that
resumes in the middle of an epoch sees the same bytes as one that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from deploy.errors import DataError
from toolchain.data.augment import augment
from toolchain.data.samples import Data, Preprocess, Split

Batch = tuple[Tensor, Tensor]


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
) -> Iterator[Batch]:
    """Augmented, normalised float32 ``[B, C, H, W]`` (channels last) and labels, from ``start`` on.

    Raises:
        DataError: There are fewer training samples than one batch.
    """
    steps = steps_per_epoch(data, batch_size, drop_last=drop_last)
    order_N = torch.randperm(len(data.train), generator=_generator("order", seed, epoch))
    for step in range(start, steps):
        index_B = order_N[step * batch_size : (step + 1) * batch_size]
        generator = _generator("augment", seed, epoch, step)
        images = augment(data.train.images(index_B), data.augment, generator)
        yield data.preprocess.normalize(images), data.train.labels_N[index_B]


def evaluation_batches(
    split: Split, preprocess: Preprocess, batch_size: int = 500
) -> Iterator[Batch]:
    """Every sample once, in order, not augmented; the last batch may be smaller."""
    for index_B in torch.arange(len(split)).split(batch_size):
        yield preprocess.normalize(split.images(index_B)), split.labels_N[index_B]


def _generator(purpose: str, *numbers: int) -> torch.Generator:
    """A generator of its own for each purpose and place in the run."""
    text = ":".join([purpose, *map(str, numbers)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
