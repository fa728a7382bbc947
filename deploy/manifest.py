"""A bundle's ``manifest.json``: every other file with its size and SHA-256; read, checked, written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, Mapping

from deploy.errors import StorageError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{folder}: not a bundle, it has no {MANIFEST}; give the folder that a run wrote"
        ) from None
    except NotADirectoryError:
        raise StorageError(
            f"{folder}: no folder; accepted is a bundle's, with its {MANIFEST}; give {_nearest(folder)}"
        ) from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); copy the bundle again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path}: format version is {version!r}; this program reads "
            f"{FORMAT_VERSION}; use the version that wrote the bundle"
        )
    lacking = [
        key
        for key in (
            "name",
            "targets",
            "input",
            "output",
            "preprocess",
            "classes",
            "samples",
            "files",
        )
        if key not in manifest
    ]
    if lacking:
        raise StorageError(f"{path}: lacks {lacking}; copy the bundle again")
    unvouched = sorted(
        {*(entry["file"] for entry in manifest["targets"].values()), manifest["samples"]}
        - set(manifest["files"])
    )
    if unvouched:
        raise StorageError(f"{path}: names {unvouched} without a hash; copy the bundle again")
    return manifest


def _nearest(file: Path) -> str:
    """The bundle that a file lies in, for somebody who gave the file."""
    inside = next((f for f in file.absolute().parents if (f / MANIFEST).is_file()), None)
    return "the folder that a run wrote" if inside is None else str(inside)


def check_file(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    path = folder / inside_path(folder, name)
    if not path.is_file():
        raise StorageError(f"{folder}: {name} is missing; copy the bundle again")
    size_bytes = path.stat().st_size
    if size_bytes != expected.get("size_bytes"):
        raise StorageError(
            f"{folder}: {name} has {size_bytes} bytes and the manifest says "
            f"{expected.get('size_bytes')}; copy the bundle again"
        )
    if sha256_of(path) != expected.get("sha256"):
        raise StorageError(
            f"{folder}: {name} was changed (its SHA-256 is not the manifest's); "
            "copy the bundle again"
        )


def inside_path(folder: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name == MANIFEST:
        raise StorageError(
            f"{folder}: file name {name!r} leaves the bundle or is its manifest; "
            "a bundle's files lie inside it"
        )
    return path


def describe(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
