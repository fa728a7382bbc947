"""What the recipe's data section becomes, and what does not fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.errors import DataError
from toolchain.data.loading import load_data
from toolchain.data.samples import Augment, Preprocess


@pytest.fixture
def npz(tmp_path: Path, pixels: Callable[..., np.ndarray]) -> Path:
    np.savez(tmp_path / "d.npz", x=pixels(20), y=np.arange(20) % 2)
    return tmp_path / "d.npz"


def test_one_number_stands_for_every_channel(config: Callable[..., Any], npz: Path) -> None:
    how = SimpleNamespace(mean=[0.5], std=[0.1, 0.2, 0.3])
    augment = SimpleNamespace(crop=3, flip=True)
    data = load_data(config("npz", root=npz, preprocess=how, augment=augment))
    assert data.preprocess == Preprocess((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert data.augment == Augment(3, True)
    assert data.skipped == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"preprocess": SimpleNamespace(mean=[0.1, 0.2], std=[1.0])},
            "data.preprocess.mean: 2 numbers for images of 3 channels; accepted: one, or 3",
        ),
        ({"augment": SimpleNamespace(crop=4, flip=False)}, "crop: 4 given for images of 4 x 6"),
    ],
)
def test_what_does_not_fit_the_images(
    config: Callable[..., Any], npz: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load_data(config("npz", root=npz, **changes))


def test_seed_moves_the_cut_and_not_the_fingerprint(config: Callable[..., Any], npz: Path) -> None:
    a, b = (load_data(config("npz", root=npz, split_seed=seed)) for seed in (0, 1))
    assert a.fingerprint == b.fingerprint
    assert not np.array_equal(_pixels(a), _pixels(b))
    assert np.array_equal(_pixels(a), _pixels(load_data(config("npz", root=npz))))


def _pixels(data: Any) -> np.ndarray:
    return data.validation.images(np.arange(len(data.validation))).numpy()
