"""Batches by number: each sample once a turn, and the same ones whenever they are asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.data.drawing import Drawing
from toolchain.data.samples import Preprocess, Split

PREPROCESS = Preprocess((0.5,), (0.25,))


def _split(count: int) -> Split:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 2, 2, 1)
    return Split.in_memory(pixels, torch.arange(count) % 3)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), size=st.integers(1, 50), number=st.integers(0, 200))
def test_a_batch_depends_on_its_number_alone(count: int, size: int, number: int) -> None:
    split = _split(count)
    fresh = Drawing(split, PREPROCESS, 3, "probe")(number, size)
    used = Drawing(split, PREPROCESS, 3, "probe")
    for other in (number + 5, 0, 1):
        used(other, size)
    again = used(number, size)
    assert all(torch.equal(one, two) for one, two in zip(fresh, again, strict=True))
    images_BCHW, labels_B, index_B = fresh
    assert len(index_B) == min(size, count)
    assert torch.equal(images_BCHW, PREPROCESS.normalize(split.images(index_B)))
    assert torch.equal(labels_B, split.labels_N[index_B])


def test_a_turn_has_each_sample_once_and_the_next_another_order() -> None:
    drawing = Drawing(_split(12), PREPROCESS, 0, "probe")
    turns = [torch.cat([drawing(t * 3 + i, 4)[2] for i in range(3)]).tolist() for t in range(2)]
    assert [sorted(turn) for turn in turns] == [list(range(12))] * 2
    assert turns[0] != turns[1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "held out"}])
def test_seed_and_purpose_shuffle_differently(change: dict[str, object]) -> None:
    how = {"seed": 0, "purpose": "probe"}
    orders = [
        Drawing(_split(30), PREPROCESS, **options)(0, 30)[2].tolist()  # type: ignore[arg-type]
        for options in (how, {**how, **change})
    ]
    assert orders[0] != orders[1]
