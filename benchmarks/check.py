"""What a device is and has, and whether a bundle can be measured on it: the verb ``device check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import environment
from deploy.checking import check


def check_device(folder: Path = Path(), root: Path = Path("/"), **needs: Any) -> dict[str, Any]:
    """``deploy.checking.check`` and the ``environment`` that a record from here would have.

    ``folder`` is where files would be kept; ``root`` is where ``/sys``, ``/proc`` and ``/etc`` are;
    ``needs`` are the further arguments of ``check``: ``provider``, ``power``, ``meter``, ``total``.
    """
    return {**check(root, folder=folder, **needs), "environment": environment.record(root)}
