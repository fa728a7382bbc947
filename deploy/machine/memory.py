"""How much memory and disk there is, and how much of it is free."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from deploy.errors import DeviceError
from deploy.machine.sysfs import read_text


def read_memory(root: Path) -> dict[str, int | None]:
    """``total_bytes`` and ``available_bytes``; the latter is ``None`` on kernels before 3.14.

    Raises:
        DeviceError: The kernel does not tell.
    """
    path = root / "proc/meminfo"
    found: dict[str, int] = {}
    for line in read_text(path).splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            found[words[0]] = int(words[1]) * 1024  # the file says kB and means KiB
    if "MemTotal:" not in found:
        raise DeviceError(f"{path}: has no MemTotal")
    return {"total_bytes": found["MemTotal:"], "available_bytes": found.get("MemAvailable:")}


def read_disk(folder: Path) -> dict[str, Any]:
    """``free_bytes`` and ``total_bytes`` where ``folder`` is or would be, and whether it can be written.

    Raises:
        DeviceError: The file system does not tell.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        usage = shutil.disk_usage(str(there))
    except OSError as error:
        raise DeviceError(f"{there}: its file system does not tell ({error.strerror})") from error
    return {
        "folder": str(folder.absolute()),
        "free_bytes": usage.free,
        "total_bytes": usage.total,
        "writable": os.access(str(there), os.W_OK),
    }
