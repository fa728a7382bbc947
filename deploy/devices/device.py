"""A device is a place that runs a bundle; ``find_device`` turns what a user typed into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Mapping, Protocol

from deploy.devices.inventory import Inventory
from deploy.devices.local import LocalDevice
from deploy.devices.ssh import SshDevice

# Called with what is being done and the share of the whole that is done, in [0, 1].
Progress = Callable[[str, float], None]
LOCAL = "local"


class Device(Protocol):
    """Every call may take as long as the work does, and raises DeviceError when the place fails."""

    @property
    def name(self) -> str: ...

    def check(self, needs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the place is and has: ``ready`` (bool), ``problems`` (why not), and the details.

        ``needs`` may name a ``provider`` and say whether ``power`` is to be measured, with which
        ``meter``; without them any runtime is enough.
        """
        ...

    def bench(
        self, bundle: Path, request: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        """Measure the bundle there as ``request`` (``benchmarks.bench.Request``) says; the record.

        ``record["device"]`` holds ``name`` and ``kind``.  Interrupted from the keyboard the place is
        told to stop, and what it has measured until then comes back with ``status: "partial"``.
        """
        ...

    def build(
        self, bundle: Path, settings: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        """Build the engine of a model there and add it to the bundle here; what was built.

        ``settings`` are those of ``deploy.engines.settings.BuildSettings.to_dict()``, and ``model``:
        which of the bundle's models, ``tensorrt`` unless said.
        """
        ...

    def close(self) -> None:
        """End connections and leave nothing running here; a device may be closed twice."""
        ...


def find_device(
    name_or_url: str, inventory: Inventory | None = None, *, keep: bool = False
) -> Device:
    """``local``, ``ssh://[user@]host[:port]``, or a name that ``device add`` gave.

    Nothing is connected yet: the first call to the device does that.  ``keep`` leaves on a device
    what runs write there, to look at.

    Raises:
        DeviceError: There is no such device; lists those that exist.
        ConfigError: The URL is not one.
    """
    if name_or_url == LOCAL:
        return LocalDevice()
    if "://" in name_or_url:
        return SshDevice.from_url(name_or_url, keep=keep)
    entry = (inventory or Inventory()).find(name_or_url)
    return SshDevice.from_url(
        entry.url,
        name=entry.name,
        python=entry.python,
        folder=entry.folder,
        jump=entry.jump,
        ssh_config=entry.ssh_config,
        keep=keep,
    )
