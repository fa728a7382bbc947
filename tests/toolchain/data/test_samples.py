"""Splits and pre-processing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import DataError
from toolchain.data.samples import Preprocess, Split, check_labels


@settings(max_examples=30, deadline=None)
@given(
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_normalize_is_the_formula(channels: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (2, channels, height, width), dtype=np.uint8)
    mean, std = rng.random(channels), rng.random(channels) + 0.1
    got = Preprocess(tuple(mean), tuple(std)).normalize(torch.from_numpy(pixels))
    column = (slice(None), None, None)
    expected = (pixels / 255.0 - mean[column]) / std[column]
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5, rtol=1e-5)


def test_normalize_leaves_its_input_alone() -> None:
    pixels = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert Preprocess((0.5,), (0.5,)).normalize(pixels).unique().tolist() == [1.0]
    assert pixels.unique().tolist() == [255]


def test_preprocess_survives_json() -> None:
    preprocess = Preprocess((0.1, 0.2), (0.3, 0.4))
    assert Preprocess.from_json(preprocess.to_json()) == preprocess


def test_part_of_a_part_names_the_right_samples() -> None:
    pixels_NHWC = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).repeat(1, 2, 3, 3)
    split = Split.in_memory(pixels_NHWC, torch.arange(10))
    part = split.part(torch.tensor([7, 3, 5, 1])).part(torch.tensor([2, 0]))
    assert len(part) == 2
    assert part.labels_N.tolist() == [5, 7]
    images = part.images(torch.tensor([1, 0, 1]))
    assert images.shape == (3, 3, 2, 3)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[:, 0, 0, 0].tolist() == [7, 5, 7]


@pytest.mark.parametrize("label", [-1, 3])
def test_label_outside_names_the_row(label: int) -> None:
    check_labels("here", torch.tensor([0, 2]), 3)
    with pytest.raises(DataError, match=f"here: label {label} in row 1; accepted: 0 to 2"):
        check_labels("here", torch.tensor([0, label]), 3)
