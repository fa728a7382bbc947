"""The INA3221 and INA238 chips of Jetson boards, read through sysfs.

Three layouts, each found by driver and told apart by label, since numbers change between boots:

* JetPack 5 and later: ``drivers/ina3221/<bus>-<address>/hwmon/hwmonN/`` with ``inC_label``,
  ``inC_input`` (mV) and ``currC_input`` (mA) for channels 1 to 3; there is no power file.
* JetPack 4: ``drivers/ina3221x/<bus>-<address>/iio:deviceN/`` with ``rail_name_C`` and
  ``in_powerC_input`` (mW) for channels 0 to 2.
* INA238 (Thor): ``drivers/ina238/<bus>-<address>/hwmon/hwmonN/power1_input`` in *microwatts*.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from deploy.errors import DeviceError
from deploy.machine.sysfs import optional_number, optional_text, read_number, read_text
from deploy.power.boards import UNCONNECTED, Supply, Total
from deploy.power.meter import Reading

DRIVERS = Path("sys/bus/i2c/drivers")
# One step of the shunt's converter in volts (data sheets: Texas Instruments SBOS576, SBOSA20).
_SHUNT_STEP_V = {"ina3221": 40e-6, "ina238": 5e-6}


@dataclass(frozen=True)
class Rail:
    """One channel: its label, where its power is read, and the unit of what is read there.

    Either ``factors`` holds voltage and current, whose product counts, or one power file.
    ``step_a`` is the current step of the chip and ``update_s`` its conversion cycle, where sysfs
    tells them.
    """

    name: str
    chip: str
    factors: tuple[Path, ...]
    unit_w: float
    step_a: float | None = None
    update_s: float | None = None

    def raw(self) -> tuple[int, ...]:
        """The registers as they are; negative ones are real.  Raises DeviceError."""
        return tuple(read_number(path) for path in self.factors)

    def watts(self, raw: Sequence[int]) -> float:
        product = self.unit_w
        for value in raw:
            product *= value
        return product

    def resolution_w(self, raw: Sequence[int]) -> float | None:
        """The step of this rail's power at its present voltage, where that is known."""
        if self.step_a is None or len(raw) < 2:
            return None
        return abs(raw[0]) * 1e-3 * self.step_a


def find_rails(root: Path, supply: Supply | None = None) -> list[Rail]:
    """Every connected channel of every chip, in the order of buses and channels.

    Raises:
        DeviceError: A label is there and cannot be read.
    """
    unlabelled = dict(supply.chips) if supply else {}
    rails: list[Rail] = []
    for driver in sorted((root / DRIVERS).glob("ina*")):
        for chip in sorted(driver.glob("*-*")):
            for node in sorted(chip.glob("hwmon/hwmon*")):
                rails += _hwmon(node, driver.name, chip.name, unlabelled)
            for node in sorted(chip.glob("iio:device*")):
                rails += _iio(node, chip.name)
    return [rail for rail in rails if rail.name != UNCONNECTED]


def _hwmon(node: Path, driver: str, chip: str, unlabelled: dict[str, str]) -> list[Rail]:
    update_ms = optional_number(node / "update_interval")
    update_s = None if update_ms is None else update_ms / 1e3
    if (node / "power1_input").exists():  # microwatts, as for every hwmon driver
        name = (
            optional_text(node / "power1_label")
            or optional_text(node / "in1_label")
            or optional_text(node / "label")
            or unlabelled.get(f"{driver}@{chip}", f"{driver}@{chip}")
        )
        return [Rail(name, chip, (node / "power1_input",), 1e-6, None, update_s)]
    rails = []
    for channel in (1, 2, 3):  # in4 to in6 are shunt voltages, in7 is their sum
        label = _label(node / f"in{channel}_label")
        if label:
            shunt_uohm = optional_number(node / f"shunt{channel}_resistor")
            step_v = _SHUNT_STEP_V.get(driver)
            rails.append(
                Rail(
                    label,
                    chip,
                    (node / f"in{channel}_input", node / f"curr{channel}_input"),
                    1e-6,  # millivolt x milliampere
                    step_v / (shunt_uohm * 1e-6) if step_v and shunt_uohm else None,
                    update_s,
                )
            )
    return rails


def _iio(node: Path, chip: str) -> list[Rail]:
    rails = []
    for channel in (0, 1, 2):
        label = _label(node / f"rail_name_{channel}")
        if label:
            rails.append(Rail(label, chip, (node / f"in_power{channel}_input",), 1e-3))
    return rails


def _label(path: Path) -> str | None:
    """``None`` where the channel is not there; one that is closed raises DeviceError."""
    return read_text(path) if os.path.exists(str(path)) else None  # noqa: PTH110 (3.8's raises)


class InaSource:
    """The rails of a board, of which ``total`` are added up and the others only kept.

    Raises:
        DeviceError: Two rails have one name, so that labels do not tell them apart.
    """

    name = "ina"
    method = "sysfs"

    def __init__(self, rails: Sequence[Rail], total: Total) -> None:
        names = [rail.name for rail in rails]
        twice = sorted({name for name in names if names.count(name) > 1})
        if set(twice) & set(total.rails):
            raise DeviceError(
                f"ina: {', '.join(twice)} exists on two chips; labels alone must tell rails apart"
            )
        # What is added up is read first and together: every read is a transfer on a slow bus.
        self._rails = sorted(rails, key=lambda rail: rail.name not in total.rails)
        self._total = total
        self._resolution_w: float | None = None

    @property
    def resolution_w(self) -> float | None:
        """Steps of the rails of the total, added in squares; known after the first reading."""
        return self._resolution_w

    def describe(self) -> dict[str, Any]:
        cycles = [rail.update_s for rail in self._rails if rail.update_s]
        return {
            "board": self._total.board,
            "scope": self._total.scope,
            "total": list(self._total.rails),
            "rails": [rail.name for rail in self._rails],
            "chips": {rail.name: rail.chip for rail in self._rails},
            "sensor_update_s": max(cycles) if cycles else None,
            "remarks": list(self._total.remarks),
        }

    def begin(self) -> None:
        """Learn the step of the total from the voltages of now.  Raises DeviceError."""
        steps = [
            rail.resolution_w(rail.raw()) for rail in self._rails if rail.name in self._total.rails
        ]
        known = [step for step in steps if step is not None]
        self._resolution_w = (
            sum(step**2 for step in known) ** 0.5 if known and len(known) == len(steps) else None
        )

    def read(self) -> Reading:
        raw = [rail.raw() for rail in self._rails]
        watts = {rail.name: rail.watts(values) for rail, values in zip(self._rails, raw)}
        return Reading(
            power_w=sum(watts[name] for name in self._total.rails),
            rails_w=watts,
            stamp=tuple(raw),
        )
