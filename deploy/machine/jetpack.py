"""Jetson software: which JetPack an L4T release belongs to, and what it brings.

Sources: NVIDIA's release notes; releases up to 6.0 from general knowledge, none confirmed on a
device here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import DeviceError
from deploy.machine.facts import first_of, installed_packages
from deploy.machine.sysfs import read_text


@dataclass(frozen=True)
class JetPack:
    """A release: its L4T versions (a prefix each), and the versions that come with it."""

    version: str
    l4t: tuple[str, ...]
    python: str
    cuda: str
    tensorrt: str


RELEASES = (
    JetPack("4.6", ("32.6",), "3.6", "10.2", "8.0"),
    JetPack("4.6.x", ("32.7",), "3.6", "10.2", "8.2"),
    JetPack("5.0.2", ("35.1",), "3.8", "11.4", "8.4"),
    JetPack("5.1", ("35.2",), "3.8", "11.4", "8.5"),
    JetPack("5.1.x", ("35",), "3.8", "11.4", "8.5"),
    JetPack("6.0", ("36.3",), "3.10", "12.2", "8.6"),
    JetPack("6.1", ("36.4.0",), "3.10", "12.6", "10.3"),
    JetPack("6.2", ("36.4.3",), "3.10", "12.6", "10.3"),
    JetPack("6.2.1", ("36.4.4", "36.4.7"), "3.10", "12.6", "10.3"),
    JetPack("6.2.2", ("36.5",), "3.10", "12.6", "10.3"),
    JetPack("7.0", ("38.2",), "3.12", "13.0", "10.13"),
    JetPack("7.1", ("38.4",), "3.12", "13.0", "10.13"),
    JetPack("7.2.1", ("39.2.1",), "3.12", "13.2", "10.16"),
    JetPack("7.2", ("39.2",), "3.12", "13.2", "10.16"),
)


def read_l4t(root: Path) -> str:
    """The L4T release, e.g. ``36.4.3``.

    Raises:
        DeviceError: Neither its file nor its package is here, or the file says something else.
    """
    return str(first_of(lambda: _from_file(root), lambda: _from_package(root)))


def _from_file(root: Path) -> str:
    path = root / "etc/nv_tegra_release"
    text = read_text(path)
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    if not found:
        raise DeviceError(f"{path}: {text[:60]!r} names no release")
    return f"{found.group(1)}.{found.group(2)}"


def _from_package(root: Path) -> str:
    version = installed_packages(root).get("nvidia-l4t-core")
    if not version:
        raise DeviceError("package nvidia-l4t-core is not installed")
    return version.partition("-")[0]


def jetpack_of(l4t: str) -> JetPack:
    """The release that an L4T version belongs to; the longest prefix counts.

    Raises:
        DeviceError: It is in no table.

    >>> jetpack_of("36.4.3").version, jetpack_of("39.2.1").version, jetpack_of("35.6.0").version
    ('6.2', '7.2.1', '5.1.x')
    """
    fitting = [
        (len(prefix), release)
        for release in RELEASES
        for prefix in release.l4t
        if f"{l4t}.".startswith(f"{prefix}.")
    ]
    if not fitting:
        raise DeviceError(f"L4T {l4t}: it is not known which JetPack that is")
    return max(fitting, key=lambda pair: pair[0])[1]


def read_jetpack(root: Path) -> str:
    """The JetPack version: of its package where that is installed, else by the L4T release.

    Raises:
        DeviceError: This is no Jetson, or the release is in no table.
    """
    version = installed_packages(root).get("nvidia-jetpack")
    return version.partition("+")[0] if version else jetpack_of(read_l4t(root)).version
