"""Parquet files with encoded images, in the layout of hub data sets.

Files are found by the start of their names (``train*``, ``validation*`` or ``val*``, ``test*``) in
``root`` or, where it has none, in ``root/data``; where all names start alike there is one part.
Columns: ``image`` (or ``img``), a struct ``{bytes, path}`` or plain bytes, and ``label``, an
integer.  Class names come from the ``huggingface`` schema metadata where it has them.  The encoded
bytes stay in memory; decoded pixels do where they fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deploy.errors import DataError, MissingDependency
from toolchain.data.encoded import Encoded, decode
from toolchain.data.fingerprint import of_files
from toolchain.data.samples import Source, check_labels

PREFIXES = {"train": "train", "val": "validation", "test": "test"}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"


def read_parquet(
    root: Path,
    *,
    channels: int | None,
    image_size: int | None,
    memory_limit_mb: int,
    on_corrupt: Literal["error", "skip"],
) -> Source:
    """The parts that the folder has.

    Raises:
        DataError: Files or columns are missing, labels are not usable, or an image is corrupt.
        MissingDependency: pyarrow or Pillow is not installed.
    """
    _pyarrow()
    shards = _shards(root)
    files = [file for part in shards.values() for file in part]
    tables = {name: [_Shard(file) for file in part] for name, part in shards.items()}
    size_bytes = sum(shard.size_bytes for part in tables.values() for shard in part)
    if size_bytes > memory_limit_mb * 2**20:
        raise DataError(
            f"data.root: {root} has {size_bytes / 2**20:.0f} MB of encoded images; accepted: up to "
            f"data.memory_limit_mb, {memory_limit_mb}; raise it, or unpack them (data.kind: folder)"
        )
    classes = _classes(tables["train"])
    for part in tables.values():
        for shard in part:
            check_labels(f"data: {shard.path.name}", torch.from_numpy(shard.labels_N), len(classes))
    splits, shape, skipped = decode(
        {name: _encoded(part) for name, part in tables.items()},
        channels=channels,
        image_size=image_size,
        memory_limit_mb=memory_limit_mb,
        on_corrupt=on_corrupt,
    )
    mark = of_files(files[0].parent, files)
    return Source(splits, classes, shape, skipped, mark)


class _Shard:
    """One file, read: its labels, and its images as encoded bytes."""

    def __init__(self, path: Path) -> None:
        pa, pq = _pyarrow()
        self.path = path
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            column = next((name for name in IMAGE_COLUMNS if name in names), None)
            if column is None or LABEL_COLUMN not in names:
                missing = LABEL_COLUMN if column else IMAGE_COLUMNS[0]
                raise DataError(
                    f"data: {path.name} has no column {missing!r}, it has {', '.join(names)}; "
                    "accepted: image and label; rename the columns"
                )
            table = file.read(columns=[column, LABEL_COLUMN])
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"data: {path.name} cannot be read ({' '.join(str(error).split())}); "
                "accepted: a whole Parquet file; fetch or write it again"
            ) from error
        self.metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
        self.labels_N = _labels(path, table.column(LABEL_COLUMN))
        self.chunks = [_bytes(path, chunk) for chunk in table.column(column).chunks]
        self.starts = np.cumsum([0, *map(len, self.chunks)])
        self.size_bytes = sum(chunk.nbytes for chunk in self.chunks)

    def __len__(self) -> int:
        return len(self.labels_N)

    def read(self, row: int) -> bytes | None:
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.chunks[chunk][row - int(self.starts[chunk])].as_py()


def _shards(root: Path) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise DataError(
            f"data.root: {root} is not a folder; accepted: a folder with train*.parquet files"
        )
    files = sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))
    if not files:
        raise DataError(
            f"data.root: {root} has no .parquet files; accepted: train*.parquet and test*.parquet "
            "there or in its folder data"
        )
    parts: dict[str, list[Path]] = {}
    for file in files:
        for prefix, part in PREFIXES.items():
            if file.name.lower().startswith(prefix):
                parts.setdefault(part, []).append(file)
    if len(parts) < 2 and "train" not in parts:
        return {"train": next(iter(parts.values()), files)}
    if "train" not in parts:
        raise DataError(
            f"data.root: {root} has {' and '.join(parts)} but no train*.parquet; "
            "accepted: train with or without the others; rename the training files"
        )
    return parts


def _labels(path: Path, column: Any) -> np.ndarray:
    pa, _ = _pyarrow()
    if not pa.types.is_integer(column.type) or column.null_count:
        given = f"{column.null_count} nulls" if column.null_count else str(column.type)
        raise DataError(
            f"data: the column label of {path.name} holds {given}; accepted: integers from 0; "
            "number the classes"
        )
    return np.array(column.to_numpy(), dtype=np.int64)  # a copy: torch needs it writable


def _bytes(path: Path, chunk: Any) -> Any:
    """The encoded bytes of one chunk of the image column."""
    pa, _ = _pyarrow()
    kind = chunk.type
    if pa.types.is_struct(kind) and any(field.name == "bytes" for field in kind):
        # Unlike `chunk.field`, this keeps rows whose struct is null as null.
        chunk = pa.compute.struct_field(chunk, "bytes")
        kind = chunk.type
    if not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise DataError(
            f"data: the image column of {path.name} holds {kind}; accepted: encoded images, as "
            "bytes or a struct of bytes and path; write the files' bytes into it"
        )
    return chunk


def _classes(shards: list[_Shard]) -> tuple[str, ...]:
    """Names from the metadata, or else the numbers up to the largest training label."""
    record = json.loads(shards[0].metadata.get(b"huggingface", b"{}"))
    feature = record.get("info", {}).get("features", {}).get(LABEL_COLUMN, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    largest = max((int(shard.labels_N.max()) for shard in shards if len(shard)), default=0)
    return tuple(str(label) for label in range(max(largest, 0) + 1))


def _encoded(shards: list[_Shard]) -> Encoded:
    starts = np.cumsum([0, *map(len, shards)])

    def place(index: int) -> tuple[_Shard, int]:
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        return shards[shard], index - int(starts[shard])

    def read(index: int) -> bytes | None:
        shard, row = place(index)
        return shard.read(row)

    def name(index: int) -> str:
        shard, row = place(index)
        return f"{shard.path.name} row {row}"

    labels_N = torch.from_numpy(np.concatenate([shard.labels_N for shard in shards]))
    return Encoded(len(labels_N), read, name, labels_N)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            "data.kind: parquet needs pyarrow, which is not installed; "
            "install the extra: pip install 'compress-deploy[images]'"
        ) from error
    return pyarrow, pyarrow.parquet
