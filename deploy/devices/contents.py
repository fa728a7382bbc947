"""Files on their way to a device: in memory or on disk, known by their hashes, read in blocks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Iterator, Union

from deploy.bundle import Bundle, add_files
from deploy.devices.farside import BLOCK
from deploy.manifest import MANIFEST

Content = Union[Path, bytes]


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="compress-deploy-") as folder:
        yield Path(folder)


def bundle_files(folder: Path) -> dict[str, Content]:
    """Every file of the bundle, which is checked first, under ``bundle/``.

    The manifest travels as it was when the files were checked: others may add to the bundle.
    """
    path = Path(folder) / MANIFEST
    while True:
        bundle = Bundle.open(Path(folder))
        manifest = path.read_bytes()
        if json.loads(manifest.decode("utf-8")) == bundle.manifest:
            break
    files: dict[str, Content] = {f"bundle/{MANIFEST}": manifest}
    files.update((f"bundle/{name}", bundle.folder / name) for name in bundle.manifest["files"])
    return files


def add_built(bundle: Path, folder: Path) -> dict[str, Any]:
    """Add to a bundle what a runner built into ``folder``; what the runner says about it.

    Raises:
        StorageError: The bundle cannot be written.
    """
    built: dict[str, Any] = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    add_files(Bundle.open(Path(bundle)), {name: folder / name for name in built["files"]})
    return built


def hash_of(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def block_of(content: Content, offset: int) -> bytes:
    if isinstance(content, bytes):
        return content[offset : offset + BLOCK]
    with content.open("rb") as file:
        file.seek(offset)
        return file.read(BLOCK)
