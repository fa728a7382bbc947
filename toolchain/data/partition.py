"""Which samples train, which choose, which judge: disjoint by construction, the same every time.

The order in which samples are cut comes from a hash of seed and position, so that it depends on no
library's random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from deploy.errors import DataError
from toolchain.data.samples import Split

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
