"""The board or server that this is: model, software, power mode, clocks, heat, graphics cards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import CompressDeployError, DeviceError
from deploy.machine.clocks import read_clocks
from deploy.machine.device_tree import is_jetson, read_compatible, read_model
from deploy.machine.facts import Facts, first_of, installed_packages, read_json, run_tool
from deploy.machine.jetpack import read_jetpack, read_l4t
from deploy.machine.sysfs import read_text
from deploy.machine.thermal import read_thermal
from deploy.power.nvml import describe_cards, open_nvml

# The GPU's architecture of each system on chip, as the compilers name it.
_COMPUTE = {
    "tegra210": "5.3",
    "tegra186": "6.2",
    "tegra194": "7.2",
    "tegra234": "8.7",
    "tegra264": "11.0",
}
_MODE = re.compile(r"NV Power Mode:\s*(\S+)\s+(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class PowerMode:
    """nvpmodel's mode.  The name is what compares: numbers mean other modes on other boards."""

    number: int
    name: str | None


@dataclass(frozen=True)
class Board:
    """What was read; a field that is ``None``, here or inside ``fields``, has its reason in ``missing``.

    ``fields`` holds ``compatible``, ``compute_capability``, ``cuda``, ``cudnn``, ``tensorrt``,
    ``driver``, ``cards`` (by NVML), ``clocks`` and ``thermal``.
    """

    model: str | None
    l4t: str | None
    jetpack: str | None
    power_mode: PowerMode | None
    jetson: bool
    fields: dict[str, Any]
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``missing`` is left out, since a record has one place for all reasons."""
        mode = self.power_mode
        return {
            "model": self.model,
            "jetson": self.jetson,
            "l4t": self.l4t,
            "jetpack": self.jetpack,
            "power_mode": None if mode is None else {"number": mode.number, "name": mode.name},
            **self.fields,
        }


def read_board(root: Path = Path("/")) -> Board:
    """Everything that the files and tools of this machine tell about it."""
    facts = Facts()
    facts.read("model", lambda: first_of(lambda: read_model(root), lambda: _dmi(root)))
    compatible = facts.read("compatible", lambda: read_compatible(root)) or []
    jetson = is_jetson(root)
    if jetson:
        facts.read("l4t", lambda: read_l4t(root))
        facts.read("jetpack", lambda: read_jetpack(root))
        facts.read("power_mode", lambda: read_power_mode(root))
    else:
        for field in ("l4t", "jetpack", "power_mode"):
            facts.put(field, None, "this is no Jetson")
    facts.put(
        "compute_capability",
        next((sm for soc, sm in _COMPUTE.items() for name in compatible if soc in name), None),
        "the device tree names no Tegra; see cards",
    )
    packages = installed_packages(root)
    facts.read("cuda", lambda: read_cuda(root, packages))
    facts.read("cudnn", lambda: _package(packages, r"libcudnn\d+(-cuda-\d+)?", "cuDNN"))
    facts.read("tensorrt", lambda: _package(packages, r"libnvinfer\d+", "TensorRT"))
    facts.read("driver", lambda: read_driver(root))
    facts.read("cards", lambda: _cards(root, jetson))
    facts.nest("clocks", read_clocks(root))
    facts.nest("thermal", read_thermal(root))
    values = facts.values
    return Board(
        model=values.pop("model"),
        l4t=values.pop("l4t"),
        jetpack=values.pop("jetpack"),
        power_mode=values.pop("power_mode"),
        jetson=jetson,
        fields=values,
        missing=facts.missing,
    )


def read_power_mode(root: Path) -> PowerMode:
    """nvpmodel's mode, by the tool, else by its state and configuration.

    Raises:
        DeviceError: Neither is here, or the tool says something else.
    """
    mode = first_of(
        lambda: parse_nvpmodel(run_tool(root, "nvpmodel", "-q")), lambda: _stored_mode(root)
    )
    assert isinstance(mode, PowerMode)
    return mode


def parse_nvpmodel(text: str) -> PowerMode:
    """What ``nvpmodel -q`` prints, in every release: a line with the name, one with the number.

    Raises:
        DeviceError: It says neither.

    >>> parse_nvpmodel("NV Fan Mode:quiet\\nNV Power Mode: MODE_15W_6CORE\\n2\\n")
    PowerMode(number=2, name='MODE_15W_6CORE')
    """
    found = _MODE.search(text)
    if not found:
        raise DeviceError(f"nvpmodel: {' '.join(text.split())[:80]!r} names no mode")
    return PowerMode(int(found.group(2)), found.group(1))


def _stored_mode(root: Path) -> PowerMode:
    """The mode in nvpmodel's state file, its name from the configuration."""
    path = root / "var/lib/nvpmodel/status"
    found = re.search(r"pmode:(\d+)", read_text(path))
    if not found:
        raise DeviceError(f"{path}: names no mode")
    number = int(found.group(1))
    named = re.search(
        rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+?)\s*>", read_text(root / "etc/nvpmodel.conf")
    )
    return PowerMode(number, named.group(1) if named else None)


def read_cuda(root: Path, packages: dict[str, str]) -> str:
    """The CUDA toolkit or runtime that is installed.  Raises DeviceError."""

    def from_json() -> str:
        path = root / "usr/local/cuda/version.json"
        try:
            return str(read_json(path)["cuda"]["version"])
        except (KeyError, TypeError) as error:
            raise DeviceError(f"{path}: names no version") from error

    def from_text() -> str:
        return read_text(root / "usr/local/cuda/version.txt").replace("CUDA Version ", "")

    def from_package() -> str:
        return _package(packages, r"cuda-cudart-\d+-\d+", "CUDA")

    return str(first_of(from_json, from_text, from_package))


def read_driver(root: Path) -> str:
    """The version of NVIDIA's kernel driver.

    Raises:
        DeviceError: It is not loaded.
    """
    path = root / "proc/driver/nvidia/version"
    found = re.search(r"(?:Kernel Module|for \w+)\s+(\d+\.\d+(?:\.\d+)?)", read_text(path))
    if not found:
        raise DeviceError(f"{path}: names no version")
    return found.group(1)


def _package(packages: dict[str, str], pattern: str, what: str) -> str:
    for name in sorted(packages, reverse=True):
        if re.fullmatch(pattern, name):
            return packages[name].partition("-")[0]
    raise DeviceError(f"{what}: no such Debian package is installed")


def _dmi(root: Path) -> str:
    """What a PC or server calls itself."""
    folder = root / "sys/class/dmi/id"
    words = [read_text(folder / "sys_vendor"), read_text(folder / "product_name")]
    return " ".join(word for word in words if word)


def _cards(root: Path, jetson: bool) -> list[dict[str, Any]]:
    if root != Path("/"):
        raise DeviceError("nvml: it knows this machine only, not another root")
    try:
        return describe_cards(open_nvml())
    except CompressDeployError as error:
        hint = "; on a Jetson it tells next to nothing anyway" if jetson else ""
        raise DeviceError(f"{error}{hint}") from error
