"""Which samples train, which choose, which judge: disjoint by construction, the same every time.

The order in which samples are cut comes from a hash of seed and position, so that it depends on no
library's random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from deploy.errors import DataError
from toolchain.data.samples import Data, Split

# Where no test part exists, this share is cut before anything else.
TEST_SHARE = 0.2


def three_parts(
    parts: Mapping[str, Split], validation: float, seed: int
) -> tuple[Split, Split, Split]:
    """Train, validation and test; those that ``parts`` lacks are cut from ``train`` by class.

    ``validation`` is the share of train after the test part was cut.

    Raises:
        DataError: A part is empty, too small to be cut, or has a single class.
    """
    for name, split in parts.items():
        if len(split) == 0:
            raise DataError(f"data: the {name} part has no samples; accepted: at least one")
    train = parts["train"]
    present = train.labels_N.unique()
    if len(present) < 2:
        raise DataError(
            f"data: all {len(train)} training samples have label {int(present[0])}; "
            "accepted: at least two classes; check the labels"
        )
    test = parts.get("test")
    if test is None:
        train, test = _cut(train, "test", TEST_SHARE, seed)
    chosen = parts.get("validation")
    if chosen is None:
        train, chosen = _cut(train, "validation", validation, seed)
    return train, chosen, test


def hold_out(data: Data, share: float, seed: int, *, at_least: int = 1) -> tuple[Data, Split]:
    """The data without a share of its training part, and that share, which nothing is fitted on.

    By class, and the same every time. What is left has positions of its own, and another
    fingerprint: a checkpoint of the one does not fit the other.

    Args:
        data: Its validation and test part stay as they are.
        share: Of the training part, in (0, 1).
        seed: Chooses the samples.
        at_least: Samples that whoever looks at the share needs.

    Raises:
        DataError: The share is out of range, or holds fewer than ``at_least`` samples.
    """
    whole = len(data.train)
    if not 0 < share < 1:
        raise DataError(
            f"held_out: {share:g} of the training part is to be held out; "
            "accepted: above 0 and below 1; change it"
        )
    train, held = _cut(data.train, "held-out", share, seed)
    if len(held) < at_least:
        raise DataError(
            f"held_out: {share:g} of {whole} training samples is {len(held)}; accepted: at "
            f"least {at_least}; hold out a larger share, or add samples"
        )
    mark = f"{data.fingerprint}:held out:{share!r}:{seed}"
    fingerprint = hashlib.sha256(mark.encode()).hexdigest()
    return replace(data, train=train, fingerprint=fingerprint), held


def _cut(split: Split, purpose: str, share: float, seed: int) -> tuple[Split, Split]:
    """What stays and what was cut; of each class the share, but never its last sample."""
    order = _order(len(split), f"{purpose}:{seed}")
    labels = split.labels_N[order]
    taken = torch.zeros(len(split), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels == label]
        count = min(len(members) - 1, max(1, round(share * len(members))))
        taken[members[:count]] = True
    if not taken.any():
        raise DataError(
            f"data: {len(split)} training samples are too few to cut a {purpose} part; "
            "accepted: at least two of some class; add samples"
        )
    return split.part((~taken).nonzero()[:, 0]), split.part(taken.nonzero()[:, 0])


def _order(count: int, salt: str) -> Tensor:
    """A permutation of [0, count) that depends on ``salt`` alone."""
    keys = [hashlib.blake2b(f"{salt}:{i}".encode(), digest_size=8).digest() for i in range(count)]
    return torch.tensor(sorted(range(count), key=keys.__getitem__), dtype=torch.int64)
