"""Heat: temperatures and the points at which the kernel acts, fans, and what slows down for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.machine.facts import Facts
from deploy.machine.sysfs import optional_number, optional_text

_ZONES = Path("sys/class/thermal")
_HWMON = Path("sys/class/hwmon")
_OFF_C = -200.0  # Tegra reports -256 for what is switched off
_SLOWS = ("passive", "hot", "critical")
# Cooling devices that slow no computation: they turn, dim, or send less.
_HARMLESS = ("fan", "lcd", "wifi")


@dataclass(frozen=True)
class Zone:
    """A thermal zone: degrees Celsius, ``None`` while it is off, and the points that slow it down."""

    name: str
    temperature_c: float | None
    trips_c: tuple[tuple[str, float], ...]


def read_thermal(root: Path) -> Facts:
    """``temperatures_c`` by zone, ``trips_c``: the lowest that slows each, ``fans``, ``slowed_by``."""
    facts = Facts()
    zones = thermal_zones(root)
    none = f"no thermal zone in {root / _ZONES}"
    facts.put("temperatures_c", {z.name: z.temperature_c for z in zones} if zones else None, none)
    facts.put(
        "trips_c",
        {z.name: min(c for _, c in z.trips_c) for z in zones if z.trips_c} if zones else None,
        none,
    )
    facts.put("fans", fans(root) or None, f"no fan in {root / _HWMON}")
    facts.put("slowed_by", cooling(root) if zones else None, none)
    return facts


def thermal_zones(root: Path) -> list[Zone]:
    """Every zone, in order; a name that comes twice gets a number."""
    zones: list[Zone] = []
    seen: dict[str, int] = {}
    for folder in sorted((root / _ZONES).glob("thermal_zone*"), key=_number):
        kind = optional_text(folder / "type") or folder.name
        seen[kind] = seen.get(kind, 0) + 1
        milli_c = optional_number(folder / "temp")  # a zone that is off answers with an error
        now_c = None if milli_c is None or milli_c / 1e3 < _OFF_C else milli_c / 1e3
        name = kind if seen[kind] == 1 else f"{kind} {seen[kind]}"
        zones.append(Zone(name, now_c, tuple(_trips(folder))))
    return zones


def _trips(folder: Path) -> list[tuple[str, float]]:
    trips = []
    for file in sorted(folder.glob("trip_point_*_type"), key=_number):
        kind = optional_text(file)
        milli_c = optional_number(file.with_name(file.name.replace("_type", "_temp")))
        if kind in _SLOWS and milli_c is not None and milli_c > 0:  # 0 and below is unused
            trips.append((kind, milli_c / 1e3))
    return trips


def cooling(root: Path) -> dict[str, int]:
    """What the kernel slows down at the moment, by how many steps; fans do not count."""
    active = {}
    for folder in sorted((root / _ZONES).glob("cooling_device*"), key=_number):
        kind = optional_text(folder / "type") or folder.name
        steps = optional_number(folder / "cur_state")
        harmless = any(word in kind.lower() for word in _HARMLESS)
        if steps is not None and steps > 0 and not harmless:
            active[f"{kind} ({folder.name})"] = steps
    return active


def fans(root: Path) -> list[dict[str, Any]]:
    """Duty (0 to 255) and turns per minute of each fan, as far as they are told."""
    found = []
    for folder in sorted((root / _HWMON).glob("hwmon*"), key=_number):
        duty = optional_number(folder / "pwm1")
        turns = optional_number(folder / "fan1_input")
        turns = optional_number(folder / "rpm") if turns is None else turns
        if duty is not None or turns is not None:
            name = optional_text(folder / "name") or folder.name
            found.append({"name": name, "duty": duty, "turns_per_minute": turns})
    duty = optional_number(root / "sys/devices/pwm-fan/cur_pwm")  # JetPack 4
    if duty is not None:
        turns = optional_number(root / "sys/kernel/debug/tegra_fan/rpm_measured")
        found.append({"name": "pwm-fan", "duty": duty, "turns_per_minute": turns})
    return found


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.name)
    return (int(digits[0]) if digits else 0, path.name)
