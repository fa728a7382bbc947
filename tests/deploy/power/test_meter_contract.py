"""One contract over every meter: INA in both layouts, tegrastats, NVML, RAPL, a recording."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import DeviceError
from deploy.power.boards import choose_total
from deploy.power.finding import find_meter
from deploy.power.meter import PowerMeter, Reading, SampledMeter
from deploy.power.nvml import NvmlSource
from deploy.power.recorded import RecordedMeter
from deploy.power.tegrastats import TegrastatsMeter

INTERVAL_S = 0.01
SCRIPT = 'while true; do echo "RAM 1/2MB VDD_IN 4000mW/1mW VDD_SOC 5mW/5mW"; sleep 0.01; done'
METERS = ("ina-hwmon", "ina-iio", "ina238", "tegrastats", "nvml", "rapl", "recorded")


@pytest.fixture(params=METERS)
def meter(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fake_board: Callable[..., Any],
    program: Callable[[Path, str, str], Path],
    fake_nvml: Callable[..., Any],
    rapl_tree: Callable[[Path], Path],
) -> PowerMeter:
    kind: str = request.param
    boards = {"ina-hwmon": "agx-orin", "ina-iio": "tx2", "ina238": "thor"}
    if kind in boards:
        return find_meter(fake_board(boards[kind])[0], interval_s=INTERVAL_S)
    if kind == "tegrastats":
        total = choose_total(["VDD_IN", "VDD_SOC"], "NVIDIA Jetson Orin Nano Developer Kit")
        path = program(tmp_path, "tegrastats", SCRIPT)
        return TegrastatsMeter(total, INTERVAL_S, (str(path),))
    if kind == "nvml":
        nvml = fake_nvml()
        return SampledMeter(NvmlSource(nvml, nvml.card), INTERVAL_S)
    if kind == "rapl":
        return find_meter(rapl_tree(tmp_path), wanted="rapl", interval_s=INTERVAL_S)
    path = tmp_path / "power.csv"
    path.write_text("time_s,power_w,cpu_w\n0,5,2\n0.5,6,2\n60,7,3\n")
    return RecordedMeter(path, from_start=True)


def test_describes_itself(meter: PowerMeter) -> None:
    told = meter.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["name"] == meter.name
    wanted = {"scope", "rails", "total", "method", "interval_s", "resolution_w", "remarks"}
    assert wanted <= told.keys()
    assert told["scope"]
    assert told["total"]


def test_a_trace_covers_the_time_between_start_and_stop(meter: PowerMeter) -> None:
    meter.start()
    began_s = time.monotonic()
    time.sleep(0.03)
    ended_s = time.monotonic()
    trace = meter.stop()
    assert trace.time_s[0] <= began_s
    assert trace.time_s[-1] >= ended_s
    assert len(trace.time_s) == len(trace.power_w) >= 2
    assert np.all(np.diff(trace.time_s) > 0)
    assert np.all(np.isfinite(trace.power_w))
    assert all(len(rail) == len(trace.time_s) for rail in trace.rails.values())
    assert 1 <= trace.updates <= len(trace.time_s)
    assert trace.method
    assert trace.interval_s > 0
    assert json.loads(json.dumps(trace.to_dict(samples=True)))["samples"] == len(trace.time_s)


def test_can_be_used_again(meter: PowerMeter) -> None:
    meter.start()
    first = meter.stop()
    meter.start()
    second = meter.stop()
    assert second.time_s[0] > first.time_s[0]
    assert len(second.time_s) >= 2


def test_order_matters(meter: PowerMeter) -> None:
    with pytest.raises(DeviceError, match="does not run; start it first"):
        meter.stop()
    meter.start()
    with pytest.raises(DeviceError, match="runs already"):
        meter.start()
    meter.stop()
    with pytest.raises(DeviceError, match="does not run"):
        meter.stop()


def test_leaves_no_thread(meter: PowerMeter) -> None:
    before = threading.active_count()
    meter.start()
    meter.stop()
    assert threading.active_count() == before


class Script:
    """A source that reads from a list, then repeats the last entry."""

    name, method, resolution_w = "script", "script", None

    def __init__(self, *readings: Reading | Exception) -> None:
        self.readings = list(readings)

    def describe(self) -> dict[str, Any]:
        return {"scope": "test", "rails": [], "total": ["test"], "remarks": []}

    def begin(self) -> None:
        pass

    def read(self) -> Reading:
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, Exception):
            raise reading
        return reading


def test_updates_are_counted_by_stamps_where_there_are_some() -> None:
    meter = SampledMeter(Script(*[Reading(5.0, stamp=i // 2) for i in range(100)]), 0.002)
    meter.start()
    time.sleep(0.03)
    trace = meter.stop()
    assert trace.updates == -(-len(trace.time_s) // 2)


def test_an_unchanging_value_is_one_update() -> None:
    meter = SampledMeter(Script(Reading(5.0)), 0.002)
    meter.start()
    time.sleep(0.02)
    assert meter.stop().updates == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_power_is_refused_at_once(value: float) -> None:
    with pytest.raises(DeviceError, match="not a number of watts"):
        SampledMeter(Script(Reading(value))).start()


def test_a_failure_in_the_middle_is_told_by_stop() -> None:
    meter = SampledMeter(Script(Reading(5.0), Reading(5.0), DeviceError("gone")), 0.002)
    meter.start()
    time.sleep(0.02)
    with pytest.raises(DeviceError, match="script: failed after 2 readings: gone"):
        meter.stop()


def test_a_failure_of_the_last_reading_is_told_too() -> None:
    meter = SampledMeter(Script(Reading(5.0), DeviceError("gone")), interval_s=60)
    meter.start()
    with pytest.raises(DeviceError, match="failed after 1 readings: gone"):
        meter.stop()


def test_a_bug_in_a_source_is_not_hidden() -> None:
    meter = SampledMeter(Script(Reading(5.0), ZeroDivisionError("bug")), 0.002)
    meter.start()
    time.sleep(0.02)
    with pytest.raises(ZeroDivisionError):
        meter.stop()


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan"), float("inf")])
def test_an_interval_is_positive(interval_s: float) -> None:
    with pytest.raises(DeviceError, match="must be positive"):
        SampledMeter(Script(Reading(5.0)), interval_s)
