"""The batched crop and flip equals one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.data.augment import augment, crop_and_flip
from toolchain.data.samples import Augment


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_equals_padding_slicing_and_mirroring_each_image(
    count: int, channels: int, height: int, width: int, padding: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    top, left = rng.integers(0, 2 * padding + 1, (2, count))
    flip = rng.random(count) < 0.5
    expected = []
    for i in range(count):
        padded = np.pad(images[i], ((0, 0), (padding, padding), (padding, padding)))
        cut = padded[:, top[i] : top[i] + height, left[i] : left[i] + width]
        expected.append(cut[:, :, ::-1] if flip[i] else cut)
    got = crop_and_flip(
        torch.from_numpy(images), padding, *map(torch.from_numpy, (top, left, flip))
    )
    assert got.dtype == torch.uint8
    assert np.array_equal(got.numpy(), np.stack(expected))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_nothing_asked_is_nothing_done() -> None:
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    assert augment(images, Augment(), torch.Generator()) is images


def test_every_offset_and_both_sides_occur() -> None:
    # One bright pixel in the middle ends up wherever the offsets put it.
    images = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 200
    out = augment(images, Augment(crop=1), torch.Generator().manual_seed(0))
    where = (out[:, 0] == 200).float().mean(0)
    assert where.sum() == pytest.approx(1)
    assert ((where - 1 / 9).abs() < 0.04).all()

    images = torch.zeros(2000, 1, 1, 2, dtype=torch.uint8)
    images[..., 0] = 200
    out = augment(images, Augment(flip=True), torch.Generator().manual_seed(0))
    assert (out[..., 1] == 200).float().mean() == pytest.approx(0.5, abs=0.05)


def test_generator_decides() -> None:
    images = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8)
    how = Augment(crop=2, flip=True)
    drawn = [augment(images, how, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
