"""Parquet files in the layout of hub data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.errors import DataError, MissingDependency
from toolchain.data.loading import load_data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Config = Callable[..., Any]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, pixels: Callable[..., np.ndarray], encode: Callable[..., bytes]) -> Write:
    """Writes one shard; labels alternate unless given."""

    def shard(
        name: str,
        count: int,
        *,
        labels: Any = None,
        kind: str = "struct",
        columns: tuple[str, str] = ("image", "label"),
        names: list[str] | None = None,
        contents: list[bytes | None] | None = None,
        size: tuple[int, int] = (4, 6),
    ) -> Path:
        content = contents or [encode(image) for image in pixels(count, size)]
        images = [{"bytes": c, "path": None} for c in content] if kind == "struct" else content
        labels = [i % 2 for i in range(count)] if labels is None else labels
        table = pa.table({columns[0]: images, columns[1]: labels})
        if names:
            features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path, row_group_size=3)
        return tmp_path

    return shard


@pytest.mark.parametrize("kind", ["struct", "bytes"])
@pytest.mark.parametrize("folder", ["", "data/"])
def test_shards_join_in_order(
    config: Config, write: Write, pixels: Callable[..., np.ndarray], kind: str, folder: str
) -> None:
    write(f"{folder}train-00000-of-00001.parquet", 20, kind=kind)
    write(f"{folder}test-00000-of-00002.parquet", 4, kind=kind)
    root = write(f"{folder}test-00001-of-00002.parquet", 5, kind=kind, labels=[1, 1, 0, 0, 1])
    data = load_data(config("parquet", root=root))
    expected = np.concatenate([pixels(4), pixels(5)]).transpose(0, 3, 1, 2)
    images = data.test.images(torch.arange(9))
    assert np.array_equal(images.numpy(), expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert data.test.labels_N.tolist() == [0, 1, 0, 1, 1, 1, 0, 0, 1]
    assert data.classes == ("0", "1")
    assert (len(data.train), len(data.validation)) == (16, 4)


def test_three_parts_are_taken_as_they_are(config: Config, write: Write) -> None:
    for name, count in (("train", 6), ("validation", 3), ("test", 2)):
        root = write(f"{name}.parquet", count)
    data = load_data(config("parquet", root=root))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 3, 2]


@pytest.mark.parametrize("name", ["train.parquet", "all.parquet", "test.parquet"])
def test_one_part_is_cut_into_three(config: Config, write: Write, name: str) -> None:
    data = load_data(config("parquet", root=write(name, 20)))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 4]


def test_names_of_classes_come_from_the_metadata(config: Config, write: Write) -> None:
    root = write("train.parquet", 20, names=["cat", "dog", "emu"])
    assert load_data(config("parquet", root=root)).classes == ("cat", "dog", "emu")


def test_streaming_equals_memory(config: Config, write: Write) -> None:
    root = write("train.parquet", 60, size=(80, 80))
    write("test.parquet", 30, size=(80, 80))
    small = load_data(config("parquet", root=root, image_size=66, memory_limit_mb=64))
    assert small.input_shape == (3, 66, 66)
    # 6.6 MiB of pixels, 1.7 MiB encoded
    held = load_data(config("parquet", root=root, image_size=160))
    streamed = load_data(config("parquet", root=root, image_size=160, memory_limit_mb=4))
    for name in ("train", "validation", "test"):
        a, b = getattr(held, name), getattr(streamed, name)
        assert torch.equal(a.labels_N, b.labels_N)
        index = torch.randperm(len(a))[:9]
        assert torch.equal(a.images(index), b.images(index))


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_corrupt_row_is_named_or_counted(
    config: Config, write: Write, encode: Callable[..., bytes], content: bytes | None
) -> None:
    good = encode(np.zeros((4, 6, 3), np.uint8))
    root = write("train-0.parquet", 20, contents=[good] * 20)
    write("train-1.parquet", 5, contents=[*[good] * 4, content])
    with pytest.raises(DataError, match="train-1.parquet row 4 cannot be decoded") as caught:
        load_data(config("parquet", root=root))
    assert "\n" not in str(caught.value)
    data = load_data(config("parquet", root=root, on_corrupt="skip"))
    assert data.skipped == ("train-1.parquet row 4",)
    assert len(data.train) + len(data.validation) + len(data.test) == 24


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"columns": ("picture", "label")}, "no column 'image', it has picture, label"),
        ({"columns": ("image", "target")}, "no column 'label', it has image, target"),
        ({"labels": ["a"] * 8}, "label of train.parquet holds string; accepted: integers"),
        ({"labels": [0, 1, None, 1, 0, 1, 0, 1]}, "holds 1 nulls"),
        ({"labels": [0, 1, -1, 1, 0, 1, 0, 1]}, "train.parquet: label -1 in row 2; accepted: 0 to"),
        (
            {"labels": [0, 1, 2, 1, 0, 1, 0, 1], "names": ["a", "b"]},
            "label 2 in row 2; accepted: 0 to 1",
        ),
        ({"labels": [1] * 8}, "all 8 training samples have label 1"),
    ],
)
def test_unusable_columns(config: Config, write: Write, how: dict[str, Any], words: str) -> None:
    root = write("train.parquet", 8, **how)
    with pytest.raises(DataError, match=words) as caught:
        load_data(config("parquet", root=root))
    assert "\n" not in str(caught.value)


def test_image_column_of_numbers(config: Config, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="image column of train.parquet holds int64"):
        load_data(config("parquet", root=tmp_path))


def test_empty_table(config: Config, write: Write) -> None:
    write("train.parquet", 8)
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
        write("train.parquet", 8) / "test.parquet",
    )
    with pytest.raises(DataError, match="the test part has no samples"):
        load_data(config("parquet", root=write("train.parquet", 8)))


def test_missing_and_broken_files(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load_data(config("parquet", root=tmp_path / "nowhere"))
    with pytest.raises(DataError, match="has no .parquet files"):
        load_data(config("parquet", root=tmp_path))
    with pytest.raises(DataError, match="data.root: not given"):
        load_data(config("parquet"))
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="test-0.parquet cannot be read"):
        load_data(config("parquet", root=tmp_path))
    (tmp_path / "val-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="has test and validation but no train"):
        load_data(config("parquet", root=tmp_path))


def test_encoded_bytes_above_the_limit(config: Config, write: Write) -> None:
    root = write("train.parquet", 70, size=(80, 80))
    with pytest.raises(DataError, match="MB of encoded images; accepted: up to .*limit_mb, 1"):
        load_data(config("parquet", root=root, memory_limit_mb=1))


def test_without_pyarrow_the_extra_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pyarrow.*compress-deploy\[images\]"):
        load_data(config("parquet", root=tmp_path))
