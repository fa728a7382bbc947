"""Image folders: layouts, sizes, corrupt files, and streaming that equals memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deploy.errors import DataError, MissingDependency
from toolchain.data.batches import batches
from toolchain.data.loading import load_data
from toolchain.data.samples import Split

Config = Callable[..., Any]
Pixels = Callable[..., np.ndarray]
Encode = Callable[..., bytes]


@pytest.fixture
def tree(tmp_path: Path, pixels: Pixels, encode: Encode) -> Callable[..., Path]:
    """Writes one PNG per pixel array below ``tmp_path``; returns it."""

    def write(counts: dict[str, int], **how: Any) -> Path:
        for folder, count in counts.items():
            (tmp_path / folder).mkdir(parents=True)
            for i, image in enumerate(pixels(count, **how)):
                (tmp_path / folder / f"{i:02}.png").write_bytes(encode(image))
        return tmp_path

    return write


def _all(split: Split) -> torch.Tensor:
    return split.images(torch.arange(len(split)))


def test_splits_and_classes(config: Config, tree: Callable[..., Path], pixels: Pixels) -> None:
    root = tree({"train/cat": 5, "train/dog": 5, "val/cat": 1, "test/cat": 2, "test/dog": 3})
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "other").mkdir()
    data = load_data(config("folder", root=root))
    assert data.classes == ("cat", "dog")
    assert data.input_shape == (3, 4, 6)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10, 1, 5]
    assert data.test.labels_N.tolist() == [0, 0, 1, 1, 1]
    expected = np.concatenate([pixels(2), pixels(3)]).transpose(0, 3, 1, 2)
    assert np.array_equal(_all(data.test).numpy(), expected)


def test_root_of_classes_is_cut_into_three(config: Config, tree: Callable[..., Path]) -> None:
    data = load_data(config("folder", root=tree({"cat": 10, "dog": 10})))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 4]


def test_validation_is_cut_from_train_only(config: Config, tree: Callable[..., Path]) -> None:
    root = tree({"train/a": 10, "train/b": 10, "test/a": 3})
    data = load_data(config("folder", root=root))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 4, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_streaming_equals_memory(
    config: Config,
    tree: Callable[..., Path],
    channels: int,
) -> None:
    how: dict[str, Any] = {
        "root": tree({"a": 30, "b": 25}, size=(40, 50), channels=channels),
        "image_size": 140,  # 1.03 MiB of pixels with one channel
        "augment": SimpleNamespace(crop=2, flip=True),
    }
    held = load_data(config("folder", **how))
    streamed = load_data(config("folder", **how, memory_limit_mb=1))
    assert held.input_shape == streamed.input_shape == (channels, 140, 140)
    assert held.fingerprint == streamed.fingerprint
    for name in ("train", "validation", "test"):
        assert torch.equal(_all(getattr(held, name)), _all(getattr(streamed, name)))
    for batch, again in zip(
        batches(held, 16, seed=0, epoch=0), batches(streamed, 16, seed=0, epoch=0), strict=True
    ):
        assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))


def test_memory_limit_decides(
    config: Config, tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree({"a": 50, "b": 50}, size=(60, 60))  # 1.03 MiB of pixels
    for limit_mb, files_read in ((2, 0), (1, 3)):
        data = load_data(config("folder", root=root, memory_limit_mb=limit_mb))
        read: list[Path] = []
        original = Path.read_bytes
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda self: read.append(self) or original(self))  # noqa: B023
            data.train.images(torch.tensor([0, 5, 1]))
        assert len(read) == files_read


def test_different_sizes_need_image_size(config: Config, tree: Callable[..., Path]) -> None:
    root = tree({"a": 6})
    tree({"b": 6}, size=(9, 5))
    with pytest.raises(DataError, match="b/00.png is 9 x 5 .*a/00.png is 4 x 6.*data.image_size"):
        load_data(config("folder", root=root))
    data = load_data(config("folder", root=root, image_size=3))
    assert data.input_shape == (3, 3, 3)


def test_resize_keeps_the_centre(config: Config, tmp_path: Path, encode: Encode) -> None:
    # Three vertical bands; a square of the shorter side sees only the middle one.
    image = np.zeros((8, 24, 1), np.uint8)
    image[:, 8:16] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.png").write_bytes(encode(image))
    data = load_data(config("folder", root=tmp_path, image_size=8))
    assert _all(data.train).unique().tolist() == [200]
    half = load_data(config("folder", root=tmp_path, image_size=4))
    assert _all(half.train)[..., 1:3].unique().tolist() == [200]


def test_three_means_ask_for_colour(config: Config, tree: Callable[..., Path]) -> None:
    root = tree({"a": 5, "b": 5}, channels=1)
    assert load_data(config("folder", root=root)).input_shape == (1, 4, 6)
    colour = SimpleNamespace(mean=[0.5] * 3, std=[0.5] * 3)
    data = load_data(config("folder", root=root, preprocess=colour))
    assert data.input_shape == (3, 4, 6)
    images = _all(data.train)
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("memory_limit_mb", [64, 1])
@pytest.mark.parametrize("content", [b"", b"not an image", "cut short"])
def test_corrupt_image_is_named_or_counted(
    config: Config,
    tree: Callable[..., Path],
    encode: Encode,
    content: bytes | str,
    memory_limit_mb: int,
) -> None:
    root = tree({"train/a": 48, "train/b": 48, "test/a": 8}, size=(60, 60))
    bad = root / "test" / "a" / "03.png"
    bad.write_bytes(bad.read_bytes()[:900] if isinstance(content, str) else content)
    with pytest.raises(DataError, match="test/a/03.png cannot be decoded.*on_corrupt: skip") as e:
        load_data(config("folder", root=root, memory_limit_mb=memory_limit_mb))
    assert "\n" not in str(e.value)
    data = load_data(
        config("folder", root=root, memory_limit_mb=memory_limit_mb, on_corrupt="skip")
    )
    assert data.skipped == ("test/a/03.png",)
    assert len(data.test) == 7
    bad.unlink()
    clean = load_data(config("folder", root=root, memory_limit_mb=memory_limit_mb))
    assert torch.equal(_all(data.test), _all(clean.test))


def test_a_file_that_breaks_later_is_named(config: Config, tree: Callable[..., Path]) -> None:
    root = tree({"a": 50, "b": 50}, size=(60, 60))
    data = load_data(config("folder", root=root, memory_limit_mb=1))
    (root / "a" / "07.png").write_bytes(b"gone")
    with pytest.raises(DataError, match="a/07.png cannot be decoded"):
        for split in (data.train, data.validation, data.test):
            _all(split)


def test_sixteen_bits_are_refused(config: Config, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image_module.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"0.png has pixels of mode I.*8 bits"):
        load_data(config("folder", root=tmp_path))


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "has no class folders"),
        ({"train/a": 0, "train/b": 0}, "has no images"),
        ({"train/a": 3, "test/a": 1}, "all 3 training samples have label 0"),
        ({"train/a": 3, "train/b": 3, "test/c": 1}, "c is no class of the training part.*a, b"),
        ({"test/a": 1, "val/a": 1}, "has test and validation but no train"),
    ],
)
def test_unusable_folders(
    config: Config, tree: Callable[..., Path], counts: dict[str, int], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load_data(config("folder", root=tree(counts)))
    assert "\n" not in str(caught.value)


def test_all_corrupt(config: Config, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="none of 2 images can be decoded, e.g. a/0.jpg"):
        load_data(config("folder", root=tmp_path, on_corrupt="skip"))


def test_without_pillow_the_extra_is_named(
    config: Config, tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree({"a": 1, "b": 1})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"Pillow.*compress-deploy\[images\]"):
        load_data(config("folder", root=root))
