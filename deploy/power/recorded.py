"""A power recording as a meter: an external analyser's CSV, or a trace that was kept.

The first line names the columns.  Time is one of ``time_s``, ``time_ms``, ``unix_s``, ``unix_ms``;
power is ``power_w`` or ``power_mw``, or the product of ``voltage_v`` and ``current_a``.  Other columns
that end in ``_w`` or ``_mw`` are rails.
"""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from deploy.errors import DeviceError
from deploy.power.meter import Trace, changes

_TIMES = {"time_s": 1.0, "time_ms": 1e-3, "unix_s": 1.0, "unix_ms": 1e-3}
_WATTS = {"_w": 1.0, "_mw": 1e-3}


class RecordedMeter:
    """Replays a recording; ``stop`` reads what an analyser has written since.

    A ``unix`` column, of an analyser whose clock is set by NTP, is moved to the monotonic clock by
    ``unix_minus_monotonic_s``: the field of that name in the environment of the run that it belongs
    to; without it that of now, on this machine.  A ``time`` column is on the monotonic clock itself;
    with ``from_start`` its first moment is that of ``start``.

    Raises:
        DeviceError: The file cannot be read, lacks a column, or holds a line that is no numbers.
    """

    name = "recorded"

    def __init__(
        self,
        path: Path,
        from_start: bool = False,
        unix_minus_monotonic_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._from_start = from_start
        if unix_minus_monotonic_s is None:
            unix_minus_monotonic_s = time.time() - time.monotonic()
        self._unix_minus_monotonic_s = unix_minus_monotonic_s
        self.method = f"recording {path.name}"
        self._take(_read(path))
        self._started_s: float | None = None
        self.trace()  # a recording that is no trace is known at once

    def _take(self, table: dict[str, np.ndarray]) -> None:
        time_name = _one_of(self._path, table, list(_TIMES))
        self._time_s = table.pop(time_name) * _TIMES[time_name]
        if time_name.startswith("unix") and not self._from_start:
            self._time_s = self._time_s - self._unix_minus_monotonic_s
        self._power_w = _power(self._path, table)
        self._rails = {
            name[: -len(suffix)]: values * unit
            for name, values in table.items()
            for suffix, unit in _WATTS.items()
            if name.endswith(suffix) and not name.startswith("power_")
        }

    def trace(self) -> Trace:
        """The whole recording, on its own clock.  Raises DeviceError when it is too short."""
        return self._trace(self._time_s)

    def _trace(self, time_s: np.ndarray) -> Trace:
        columns = (self._power_w, *self._rails.values())
        updated = changes([tuple(row) for row in zip(*columns)])
        return Trace(
            time_s=time_s,
            power_w=self._power_w,
            rails=self._rails,
            updates=int(updated.sum()),
            method=self.method,
            interval_s=float(np.median(np.diff(time_s))) if len(time_s) > 1 else math.nan,
            updated=updated,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "board": None,
            "scope": f"what {self._path.name} recorded",
            "total": ["power"],
            "rails": list(self._rails),
            "method": self.method,
            "interval_s": float(np.median(np.diff(self._time_s))),
            "resolution_w": None,
            "remarks": [],
        }

    def start(self) -> None:
        """Note the moment.  Raises DeviceError when the meter runs already."""
        if self._started_s is not None:
            raise DeviceError(f"{self.name}: the meter runs already; stop it before starting again")
        self._started_s = self._clock()

    def stop(self) -> Trace:
        """The recording as it is now.

        Raises:
            DeviceError: The meter does not run, or the file is no recording any more.
        """
        if self._started_s is None:
            raise DeviceError(f"{self.name}: the meter does not run; start it first")
        started_s, self._started_s = self._started_s, None
        self._take(_read(self._path, growing=True))
        shift_s = started_s - self._time_s[0] if self._from_start else 0.0
        return self._trace(self._time_s + shift_s)


def _read(path: Path, growing: bool = False) -> dict[str, np.ndarray]:
    """Columns by name; of a ``growing`` file the last line counts when its end is written too."""
    try:
        lines = path.read_bytes().decode("utf-8").splitlines(keepends=True)
        if growing and lines and not lines[-1].endswith("\n"):
            lines.pop()
        reader = csv.reader(lines)
        rows = [(reader.line_num, row) for row in reader if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise DeviceError(f"{path}: the recording cannot be read: {reason}") from error
    if len(rows) < 3:
        raise DeviceError(f"{path}: {max(0, len(rows) - 1)} samples; a recording needs 2 or more")
    names = [name.strip() for name in rows[0][1]]
    columns: list[list[float]] = [[] for _ in names]
    for number, row in rows[1:]:
        try:
            values = [float(cell) for cell in row]
        except ValueError as error:
            raise DeviceError(f"{path}: line {number} holds {row}, not numbers") from error
        if len(values) != len(names) or not all(map(math.isfinite, values)):
            raise DeviceError(f"{path}: line {number} holds {row}; expected {names} as numbers")
        for column, value in zip(columns, values):
            column.append(value)
    return {name: np.array(column) for name, column in zip(names, columns)}


def _one_of(path: Path, table: dict[str, np.ndarray], wanted: list[str]) -> str:
    for name in wanted:
        if name in table:
            return name
    raise DeviceError(
        f"{path}: none of its columns {list(table)} is {' or '.join(wanted)}; rename one"
    )


def _power(path: Path, table: dict[str, np.ndarray]) -> np.ndarray:
    if "voltage_v" in table and "current_a" in table and not {"power_w", "power_mw"} & set(table):
        return table["voltage_v"] * table["current_a"]
    name = _one_of(path, table, ["power_w", "power_mw"])
    return table[name] * _WATTS[name[len("power") :]]
