"""Batches by number, without an end: what probes and deans look at beside the training.

Axes: B batch, N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolchain.data.batches import generator_of
from toolchain.data.residence import resident
from toolchain.data.samples import Preprocess, Split


class Drawing:
    """The number-th batch of a part that is shuffled anew each time it was gone through; not augmented.

    Args:
        split: Where samples come from.
        preprocess: As for evaluation.
        seed: Of the order; the same number and size give the same batch, whatever came before.
        purpose: Two drawings of different purposes shuffle differently.
        device: Where the batches are wanted; the same bytes on any.
    """

    def __init__(
        self, split: Split, preprocess: Preprocess, seed: int, purpose: str, device: str = "cpu"
    ) -> None:
        self._split, self._preprocess = resident(split, device), preprocess
        self._seed, self._purpose, self._device = seed, purpose, device
        self._order: tuple[int, Tensor] | None = None  # of the turn that was last asked for

    def __call__(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, C, H, W], labels [B] and positions [B] in the part; B is at most its length."""
        size = min(size, len(self._split))
        per_round = len(self._split) // size
        turn, place = divmod(number, per_round)
        if self._order is None or self._order[0] != turn:
            generator = generator_of(self._purpose, self._seed, turn)
            order_N = torch.randperm(len(self._split), generator=generator)
            self._order = turn, order_N.to(self._split.device)
        index_B = self._order[1][place * size : (place + 1) * size]
        images_BCHW = self._split.images(index_B).to(self._device, non_blocking=True)
        labels_B = self._split.labels_N[index_B].to(self._device, non_blocking=True)
        return self._preprocess.normalize(images_BCHW), labels_B, index_B.to(self._device)
