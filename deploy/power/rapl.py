"""RAPL: the energy counters of x86 processors, in ``/sys/class/powercap/intel-rapl:*``.

A package's counter includes its ``core`` and ``uncore`` zones; ``dram`` is beside it, and ``psys``
includes them all.  So the total is packages + dram, and nothing else is added.  The files are in
microjoules, wrap at ``max_energy_range_uj``, and are closed to all but root since kernel 5.10.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from deploy.errors import DeviceError
from deploy.machine.sysfs import read_number, read_text
from deploy.power.meter import Reading

ZONES = Path("sys/class/powercap")
_SETTLE_S = 0.02


@dataclass(frozen=True)
class Zone:
    """One counter: its name, its file, where it wraps, and whether it is part of the total."""

    name: str
    energy: Path
    range_uj: int
    counts: bool


def find_zones(root: Path) -> list[Zone]:
    """Every zone of every package.

    Raises:
        DeviceError: A zone's name or range cannot be read.
    """
    zones = []
    for folder in sorted((root / ZONES).glob("intel-rapl:*")):
        # The top-level zones have one colon in their name; sub-zones are listed beside them.
        number = folder.name.partition(":")[2]
        name = read_text(folder / "name")
        parent = number.partition(":")[0]
        nested = ":" in number
        zones.append(
            Zone(
                f"{read_text(folder.parent / f'intel-rapl:{parent}' / 'name')}/{name}"
                if nested
                else name,
                folder / "energy_uj",
                read_number(folder / "max_energy_range_uj"),
                name == "dram" if nested else name.startswith("package"),
            )
        )
    return zones


class RaplSource:
    """Joules of the processor packages and their memory; power is what was added since last time."""

    name = "rapl"
    method = "energy counter"
    resolution_w = None

    def __init__(
        self,
        zones: Sequence[Zone],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not any(zone.counts for zone in zones):
            raise DeviceError(
                f"rapl: no package among {[zone.name for zone in zones]}; the total is not known"
            )
        self._zones = list(zones)
        self._clock = clock
        self._sleep = sleep
        self._last_s = 0.0
        self._last_uj: list[int] = []
        self._sums_uj = [0] * len(zones)

    def describe(self) -> dict[str, Any]:
        return {
            "board": None,
            "scope": "processor packages and, where listed, their memory; not the rest of the machine",
            "total": [zone.name for zone in self._zones if zone.counts],
            "rails": [zone.name for zone in self._zones],
            "sensor_update_s": 0.001,
            "remarks": ["core and uncore are part of their package, psys includes all: not added"],
        }

    def begin(self) -> None:
        """Read once, so that the first reading has something to be the difference to."""
        self._last_uj = [read_number(zone.energy) for zone in self._zones]
        self._last_s = self._clock()
        self._sums_uj = [0] * len(self._zones)
        self._sleep(_SETTLE_S)

    def read(self) -> Reading:
        values = [read_number(zone.energy) for zone in self._zones]
        now_s = self._clock()
        passed_s = now_s - self._last_s
        if passed_s <= 0:
            raise DeviceError("rapl: two readings at one moment; lengthen the interval")
        added_uj = []
        for zone, value, last in zip(self._zones, values, self._last_uj):
            step = value - last
            added_uj.append(step if step >= 0 else step + zone.range_uj)  # it wrapped, once
        self._sums_uj = [total + step for total, step in zip(self._sums_uj, added_uj)]
        self._last_uj, self._last_s = values, now_s
        watts = {zone.name: step * 1e-6 / passed_s for zone, step in zip(self._zones, added_uj)}
        return Reading(
            power_w=sum(watts[zone.name] for zone in self._zones if zone.counts),
            rails_w=watts,
            stamp=tuple(values),
            energy_j=sum(t for t, zone in zip(self._sums_uj, self._zones) if zone.counts) * 1e-6,
        )
