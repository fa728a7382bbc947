"""Energy of calls with known power, in simulated time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from benchmarks.energy.measuring import PROFILES, Windows, measure_energy
from benchmarks.records.request import PROFILES as NAMES
from deploy.errors import DeviceError
from deploy.power.meter import Trace

IDLE_W, WINDOWS = 2.0, Windows(window_s=5.0, rounds=2, idle_s=5.0, settle_s=0.5)


class Machine:
    """Draws 2 W idle and what a call asks for while it runs; is its own meter at 10 Hz."""

    name = "simulated"

    def __init__(self, fails: bool = False) -> None:
        self.now_s = 0.0
        self.fails = fails
        self.stopped = 0
        self.spans: list[tuple[float, float, float]] = []
        self.log: list[str] = []

    def call(self, name: str, seconds: float, power_w: float):  # type: ignore[no-untyped-def]
        def run() -> None:
            self.spans.append((self.now_s, self.now_s + seconds, power_w))
            self.log.append(name)
            self.now_s += seconds

        return run

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def start(self) -> None:
        self.started_s = self.now_s

    def stop(self) -> Trace:
        self.stopped += 1
        if self.fails:
            raise DeviceError("the sensor is gone")
        time_s = np.arange(self.started_s, self.now_s + 0.1, 0.1)
        power_w = np.full(len(time_s), IDLE_W)
        for start, end, watts in self.spans:
            power_w[(time_s >= start) & (time_s < end)] = watts
        # The sensor's readings scatter, so that each counts as a new value.
        power_w += 1e-4 * np.arange(len(time_s)) % 3e-4
        return Trace(time_s, power_w, {}, len(time_s), "simulated", 0.1)


def test_joules_per_inference() -> None:
    """10 ms at 8 W are 80 mJ, 5 ms at 5 W are 25 mJ; of a query of 2 samples half."""
    machine = Machine()
    calls = {
        "teacher": machine.call("teacher", 0.01, 8.0),
        "student": machine.call("student", 0.005, 5.0),
    }
    heard: list[float] = []
    energies, meter = measure_energy(
        calls,
        2,
        machine,
        WINDOWS,
        progress=heard.append,
        clock=lambda: machine.now_s,
        sleep=machine.sleep,
    )
    assert energies["teacher"]["total_j"] == pytest.approx(0.04, rel=0.02)
    assert energies["student"]["total_j"] == pytest.approx(0.0125, rel=0.02)
    assert energies["teacher"]["net_j"] == pytest.approx(0.03, rel=0.02)
    assert energies["student"]["net_j"] == pytest.approx(0.0075, rel=0.02)
    assert energies["teacher"]["windows"] == 2
    assert energies["teacher"]["inferences"] == pytest.approx(2 * 1000, abs=8)
    assert meter["name"] == "simulated"
    assert machine.now_s == pytest.approx(WINDOWS.duration_s(2), abs=0.5)
    assert heard == sorted(heard)
    turns = [name for name, _ in itertools.groupby(machine.log)]
    assert turns == ["teacher", "student", "teacher"]  # ABBA


def test_an_interrupt_stops_the_meter() -> None:
    machine = Machine()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_energy({"student": interrupted}, 1, machine, WINDOWS,
                       clock=lambda: machine.now_s, sleep=machine.sleep)  # fmt: skip
    assert machine.stopped == 1


def test_a_sensor_that_fails_is_an_error() -> None:
    machine = Machine(fails=True)
    with pytest.raises(DeviceError, match="the sensor is gone"):
        measure_energy({"student": machine.call("s", 0.01, 5.0)}, 1, machine, WINDOWS,
                       clock=lambda: machine.now_s, sleep=machine.sleep)  # fmt: skip


def test_every_profile_has_windows() -> None:
    assert set(PROFILES) == set(NAMES)
    assert all(windows.window_s >= 3 and windows.idle_s >= 3 for windows in PROFILES.values())
