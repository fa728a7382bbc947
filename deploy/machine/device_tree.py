"""What the device tree says of a board: its model, the names of its parts, whether it is a Jetson."""

from __future__ import annotations

from pathlib import Path

from deploy.errors import DeviceError
from deploy.machine.sysfs import read_text

TREE = Path("proc/device-tree")


def read_model(root: Path) -> str:
    """The board's name.  Raises DeviceError where there is no device tree, as on a PC."""
    return read_text(root / TREE / "model")


def read_compatible(root: Path) -> list[str]:
    """The names of board, module and chip.  Raises DeviceError where there is no device tree."""
    return [name for name in read_text(root / TREE / "compatible").split("\0") if name]


def is_jetson(root: Path) -> bool:
    """Whether a Tegra is in the device tree, or NVIDIA's Linux for it is installed."""
    try:
        compatible = read_compatible(root)
    except DeviceError:
        compatible = []
    release = root / "etc/nv_tegra_release"
    return any("tegra" in name for name in compatible) or release.exists()
