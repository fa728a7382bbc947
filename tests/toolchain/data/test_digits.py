"""scikit-learn's digits as samples."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deploy.errors import MissingDependency
from toolchain.data.digits import read_digits
from toolchain.data.loading import load_data

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_pixels_are_the_counts_on_the_full_scale() -> None:
    source = read_digits()
    images = source.parts["train"].images(torch.arange(1797))
    counts = torch.from_numpy(sklearn_datasets.load_digits().images)
    assert (images[:, 0].double() - counts * 255 / 16).abs().max() <= 0.5
    assert images.dtype == torch.uint8 and images.shape == (1797, 1, 8, 8)
    assert images.max() == 255 and len(images.unique()) == 17
    assert source.input_shape == (1, 8, 8)


def test_split_is_by_class(config: Callable[..., Any]) -> None:
    data = load_data(config("digits", validation=0.125))
    assert abs(len(data.train) / 1797 - 0.7) < 0.01
    assert abs(len(data.validation) / 1797 - 0.1) < 0.01
    assert abs(len(data.test) / 1797 - 0.2) < 0.01
    for part in (data.train, data.validation, data.test):
        share = torch.bincount(part.labels_N, minlength=10) / len(part)
        assert ((share - 0.1).abs() < 0.02).all()
    assert data.fingerprint == load_data(config("digits", split_seed=9)).fingerprint


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependency, match=r"scikit-learn.*compress-deploy\[demo\]"):
        read_digits()
