"""Arrays in an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.errors import DataError
from toolchain.data.loading import load_data

Config = Callable[..., Any]
LABELS = np.arange(20) % 2


def _file(tmp_path: Path, **arrays: Any) -> Path:
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path / "d.npz"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_every_layout_gives_the_same_images(
    config: Config, tmp_path: Path, pixels: Callable[..., np.ndarray], layout: str
) -> None:
    channels = 1 if layout == "NHW" else 3
    x = pixels(20, channels=channels)
    stored = {"NHWC": x, "NCHW": x.transpose(0, 3, 1, 2), "NHW": x[..., 0]}[layout]
    path = _file(tmp_path, x_train=stored, y_train=LABELS, x_test=stored, y_test=LABELS[:, None])
    data = load_data(config("npz", root=path))
    images = data.test.images(torch.arange(20))
    assert np.array_equal(images.numpy(), x.transpose(0, 3, 1, 2))
    assert data.input_shape == (channels, 4, 6)
    assert data.test.labels_N.tolist() == LABELS.tolist()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 4, 20]


def test_one_part_and_names_of_classes(
    config: Config, tmp_path: Path, pixels: Callable[..., np.ndarray]
) -> None:
    _file(tmp_path, x=pixels(20), y=LABELS.astype(np.uint8), classes=np.array(["cat", "dog"]))
    data = load_data(config("npz", root=tmp_path))  # the folder has exactly one file
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 4]


def test_given_validation_is_used(
    config: Config, tmp_path: Path, pixels: Callable[..., np.ndarray]
) -> None:
    x = pixels(20)
    path = _file(
        tmp_path, x_train=x, y_train=LABELS, x_validation=x[:3], y_validation=LABELS[:3],
        x_test=x[:2], y_test=LABELS[:2],
    )  # fmt: skip
    data = load_data(config("npz", root=path))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 3, 2]


X = np.zeros((20, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": X}, "has the arrays x_train; accepted: x_train and y_train"),
        ({"x": X.astype(np.float32), "y": LABELS}, "x in d.npz is float32; accepted: uint8"),
        ({"x": X, "y": LABELS * 0.5}, "y in d.npz is float64 of shape"),
        ({"x": X, "y": LABELS[:9]}, r"shape \(9,\); accepted: 20 integers"),
        ({"x": X[0], "y": LABELS[:8]}, r"x in d.npz has shape \(8, 8\)"),
        ({"x": np.zeros((20, 3, 8, 3), np.uint8), "y": LABELS}, "has shape"),
        ({"x": X, "y": LABELS * 0}, "all 20 training samples have label 0"),
        ({"x": X, "y": LABELS - 1}, "label -1 in row 0"),
        ({"x": X[:0], "y": LABELS[:0]}, "the train part has no samples"),
        ({"x": X, "y": LABELS, "classes": np.array(["one"])}, "label 1 in row 1; accepted: 0 to 0"),
        ({"x": np.array([None] * 20), "y": LABELS}, "cannot be read"),
        (
            {"x_train": X, "y_train": LABELS, "x_test": X[:, :4], "y_test": LABELS},
            "different shapes: x_train",
        ),
    ],
)
def test_unusable_arrays(
    config: Config, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_data(config("npz", root=_file(tmp_path, **arrays)))
    assert "\n" not in str(caught.value)


def test_missing_broken_and_too_large(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d.npz is not a file"):
        load_data(config("npz", root=tmp_path / "d.npz"))
    with pytest.raises(DataError, match=r"has 0 \.npz files"):
        load_data(config("npz", root=tmp_path))
    (tmp_path / "d.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="d.npz cannot be read"):
        load_data(config("npz", root=tmp_path / "d.npz"))
    path = tmp_path / "e.npz"
    np.savez_compressed(path, x=np.zeros((20, 300, 300), np.uint8), y=LABELS)
    with pytest.raises(DataError, match="unpacks to 2 MB; accepted: up to .*limit_mb, 1"):
        load_data(config("npz", root=path, memory_limit_mb=1))
