"""``runner.pyz``: the device side in one file that any Python from 3.8 on starts.

The bytes depend on the sources alone (sorted names, one date), so a device that has them is not
sent them again.
"""

from __future__ import annotations

import io
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Iterator

ROOMS = ("benchmarks", "deploy")
NAME = "compress-deploy"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say
_MAIN = """\
import sys

if sys.version_info < (3, 8):
    sys.exit("compress-deploy: python is %d.%d; Python 3.8 or newer is needed" % sys.version_info[:2])
from benchmarks.runner import main

sys.exit(main())
"""


def pack_runner(root: Path | None = None) -> bytes:
    """The rooms below ``root`` (where this package is installed) as an executable zip file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in _contents(root or Path(__file__).parents[2]):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # the same bytes from whatever system packs them
            packed.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return b"#!/usr/bin/env python3\n" + archive.getvalue()


def _contents(root: Path) -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", _MAIN.encode()
    version = _version()  # where importlib.metadata looks for it, inside a zip file too
    yield (
        f"{NAME.replace('-', '_')}-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n".encode(),
    )
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _version() -> str:
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:  # used from a folder of sources
        return "0"
