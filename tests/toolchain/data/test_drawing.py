"""Batches by number: what a number gives, and that none is left out."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from toolchain.data.drawing import Drawing
from toolchain.data.samples import Preprocess, Split


def drawing(samples: int, purpose: str = "probe", seed: int = 0) -> Drawing:
    pixels_NHWC = torch.arange(samples, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1)
    split = Split.in_memory(pixels_NHWC.contiguous(), torch.arange(samples) % 3)
    return Drawing(split, Preprocess((0.0,), (1.0,)), seed, purpose)


@given(st.integers(2, 40), st.integers(1, 50), st.integers(0, 20))
def test_a_number_gives_the_same_batch_whatever_came_before(n: int, size: int, number: int) -> None:
    first, second = drawing(n), drawing(n)
    for earlier in range(number):
        first(earlier, 1 + earlier)
    for one, other in zip(first(number, size), second(number, size), strict=True):
        assert torch.equal(one, other)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 3))
def test_a_round_gives_no_sample_twice(n: int, size: int, turn: int) -> None:
    draw, size = drawing(n), min(size, n)
    rounds = n // size
    index = torch.cat([draw(turn * rounds + i, size)[2] for i in range(rounds)])
    assert len(index) == rounds * size == len(index.unique())


def test_images_labels_and_positions_belong_together() -> None:
    images_BCHW, labels_B, index_B = drawing(30)(3, 8)
    assert torch.equal((images_BCHW[:, 0, 0, 0] * 255).round().long(), index_B)
    assert torch.equal(labels_B, index_B % 3)


def test_purposes_and_seeds_differ_and_a_small_part_gives_what_it_has() -> None:
    assert not torch.equal(drawing(30)(0, 8)[2], drawing(30, "held out")(0, 8)[2])
    assert not torch.equal(drawing(30)(0, 8)[2], drawing(30, seed=1)(0, 8)[2])
    assert len(drawing(5)(7, 8)[2]) == 5
