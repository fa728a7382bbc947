"""A hash of what lies on disk, so that a run knows whether its data changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

# Above this total, reading everything once more would cost more than it protects.
CONTENT_LIMIT_BYTES = 256 * 2**20


def of_files(root: Path, files: Iterable[Path]) -> str:
    """sha256 over relative names and sizes, and over contents or, above 256 MiB, change times."""
    listed = sorted((path.relative_to(root).as_posix(), path) for path in files)
    stats = [path.stat() for _, path in listed]
    by_content = sum(stat.st_size for stat in stats) < CONTENT_LIMIT_BYTES
    total = hashlib.sha256()
    for (name, path), stat in zip(listed, stats, strict=True):
        if by_content:
            with path.open("rb") as file:
                mark = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            mark = str(stat.st_mtime_ns)
        total.update(f"{name}\0{stat.st_size}\0{mark}\n".encode())
    return total.hexdigest()
