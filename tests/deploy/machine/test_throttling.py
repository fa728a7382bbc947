"""Whatever slows a machine down is seen, and what is no throttling is not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import DeviceError
from deploy.machine.throttling import ThrottleWatch

Files = Callable[[Path, Mapping[str, str]], None]
POLICY = "sys/devices/system/cpu/cpufreq/policy0"


def reasons_after(root: Path, write_files: Files, files: Mapping[str, str]) -> list[str]:
    watch = ThrottleWatch(root, interval_s=60)
    watch.start()
    write_files(root, files)
    return watch.stop()


def test_a_calm_machine(every_board: tuple[Path, Any], write_files: Files) -> None:
    root, _ = every_board
    calm = {
        "sys/class/thermal/thermal_zone0/temp": "98999\n",
        "sys/class/thermal/cooling_device0/cur_state": "4\n",  # the fan turns faster
        f"{POLICY}/scaling_cur_freq": "300000\n",  # free to move with the load
    }
    assert reasons_after(root, write_files, calm) == []


def test_trips_that_are_unused_or_for_the_fan(
    fake_board: Callable[..., Any], write_files: Files
) -> None:
    root, _ = fake_board("agx-orin")
    zone = "sys/class/thermal/thermal_zone0"
    write_files(
        root,
        {
            f"{zone}/trip_point_2_type": "passive\n",
            f"{zone}/trip_point_2_temp": "0\n",
            f"{zone}/trip_point_3_type": "critical\n",
            f"{zone}/trip_point_3_temp": "-274000\n",
        },
    )
    assert reasons_after(root, write_files, {f"{zone}/temp": "60000\n"}) == []


def test_nothing_to_watch(tmp_path: Path) -> None:
    watch = ThrottleWatch(tmp_path)
    watch.start()
    assert watch.watched == []
    assert watch.stop() == []


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        (
            "sys/class/hwmon/hwmon1/oc3_event_cnt",
            "9",
            "oc3_event_cnt (instantaneous over-current): 4 more than before",
        ),
        (
            "sys/class/hwmon/hwmon1/oc1_event_cnt",
            "1",
            "oc1_event_cnt (under-voltage): 1 more than before",
        ),
        (
            "sys/class/thermal/thermal_zone0/temp",
            "99000",
            "cpu-thermal: reached its passive trip at 99 °C",
        ),
        (
            "sys/class/thermal/cooling_device1/cur_state",
            "1",
            "cpu-throttle-alert (cooling_device1): the kernel slowed it down against heat",
        ),
        (
            f"{POLICY}/scaling_max_freq",
            "1100000",
            "policy0: its highest clock fell from 1510 to 1100 MHz",
        ),
        (
            "sys/class/devfreq/17000000.gpu/max_freq",
            "612000000",
            "17000000.gpu: its highest clock fell from 918 to 612 MHz",
        ),
    ],
)
def test_what_is_seen_on_a_board(
    fake_board: Callable[..., Any], write_files: Files, file: str, text: str, reason: str
) -> None:
    root, _ = fake_board("agx-orin")
    assert reasons_after(root, write_files, {file: f"{text}\n"}) == [reason]


def locked(now_khz: int, driver: str = "tegra194") -> dict[str, str]:
    return {
        f"{POLICY}/scaling_driver": f"{driver}\n",
        f"{POLICY}/scaling_min_freq": "1510400\n",
        f"{POLICY}/scaling_max_freq": "1510400\n",
        f"{POLICY}/scaling_cur_freq": f"{now_khz}\n",
    }


@pytest.mark.parametrize(
    ("now_khz", "driver", "seen"),
    [
        (1510400, "tegra194", False),
        (1500000, "tegra194", False),
        (1100000, "tegra194", True),
        (1100000, "intel_pstate", False),  # the hardware chooses; an idle core tells a low clock
    ],
)
def test_locked_clocks_that_drop(
    fake_board: Callable[..., Any], write_files: Files, now_khz: int, driver: str, seen: bool
) -> None:
    root, _ = fake_board("orin-nano")
    write_files(root, locked(1510400, driver))
    reasons = reasons_after(root, write_files, locked(now_khz, driver))
    assert reasons == (["policy0: ran below its locked clock of 1510 MHz"] if seen else [])


def test_a_dip_between_start_and_stop_is_seen(
    fake_board: Callable[..., Any], write_files: Files
) -> None:
    root, _ = fake_board("orin-nano")
    watch = ThrottleWatch(root, interval_s=0.005)
    watch.start()
    write_files(root, {"sys/class/thermal/thermal_zone0/temp": "99500\n"})
    deadline = time.monotonic() + 5
    while not watch._seen and time.monotonic() < deadline:
        time.sleep(0.005)
    write_files(root, {"sys/class/thermal/thermal_zone0/temp": "50000\n"})
    assert watch.stop() == ["cpu-thermal: reached its passive trip at 99 °C"]


def test_x86_counters(tmp_path: Path, write_files: Files) -> None:
    folder = "sys/devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_count"
    before = {folder.format(cpu, kind): "7\n" for cpu in (0, 1) for kind in ("core", "package")}
    write_files(tmp_path, before)
    reasons = reasons_after(
        tmp_path,
        write_files,
        {folder.format(cpu, "package"): "10\n" for cpu in (0, 1)},
    )
    assert reasons == ["processor package thermal throttling: 3 more than before"]


def test_the_quota_of_a_container(tmp_path: Path, write_files: Files) -> None:
    text = "usage_usec 5\nnr_periods 10\nnr_throttled {}\nthrottled_usec 9\n"
    write_files(tmp_path, {"sys/fs/cgroup/cpu.stat": text.format(2)})
    reasons = reasons_after(tmp_path, write_files, {"sys/fs/cgroup/cpu.stat": text.format(5)})
    assert reasons == ["processor quota of the control group: 3 more than before"]


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, []),
        (0x1 | 0x2, []),  # idle; clocks that the user asked for
        (0x4, ["graphics card: power cap"]),
        (
            0x8 | 0x40,
            ["graphics card: hardware slowdown", "graphics card: hardware thermal slowdown"],
        ),
    ],
)
def test_a_graphics_card(
    tmp_path: Path, fake_nvml: Callable[..., Any], bits: int, reasons: list[str]
) -> None:
    nvml = fake_nvml()
    watch = ThrottleWatch(tmp_path, 60, lambda: (nvml, nvml.card))
    watch.start()
    assert watch.watched == ["clock event reasons"]
    nvml.state.reasons = bits
    assert watch.stop() == reasons


def test_a_card_that_others_work_on(tmp_path: Path, fake_nvml: Callable[..., Any]) -> None:
    nvml = fake_nvml()
    nvml.state.reasons = 0x4
    watch = ThrottleWatch(tmp_path, 60, lambda: (nvml, nvml.card), card=False)
    watch.start()
    assert (watch.watched, watch.stop()) == ([], [])


def test_a_card_that_does_not_tell_or_is_not_there(
    tmp_path: Path, fake_nvml: Callable[..., Any]
) -> None:
    nvml = fake_nvml(without=("reasons",))
    watch = ThrottleWatch(tmp_path, 60, lambda: (nvml, nvml.card))
    watch.start()
    assert (watch.watched, watch.stop()) == ([], [])

    def absent() -> Any:
        raise DeviceError("nvml: no driver")

    watch = ThrottleWatch(tmp_path, 60, absent)
    watch.start()
    assert (watch.watched, watch.stop()) == ([], [])


def test_starting_again_forgets(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("orin-nano")
    watch = ThrottleWatch(root, 60)
    watch.start()
    write_files(root, {"sys/class/hwmon/hwmon1/oc3_event_cnt": "9\n"})
    watch.start()
    assert watch.stop() == []
    assert watch.stop() == []  # it does not run any more


def test_this_machine() -> None:
    watch = ThrottleWatch()
    watch.start()
    assert isinstance(watch.stop(), list)


def test_the_summary_says_how_values_moved(
    fake_board: Callable[..., Any], write_files: Files, fake_nvml: Callable[..., Any]
) -> None:
    root, _ = fake_board("orin-nano")
    nvml = fake_nvml()
    watch = ThrottleWatch(root, 60, lambda: (nvml, nvml.card))
    watch.start()
    write_files(
        root,
        {
            "sys/class/thermal/thermal_zone0/temp": "61500\n",
            f"{POLICY}/scaling_cur_freq": "1510400\n",
        },
    )
    watch.stop()
    told = watch.summary()
    assert json.loads(json.dumps(told)) == told
    moved = {"start": 48.5, "lowest": 48.5, "highest": 61.5, "end": 61.5}
    assert told["values"]["cpu-thermal_c"] == moved
    assert told["values"]["policy0_mhz"]["highest"] == pytest.approx(1510.4)
    assert told["values"]["graphics card sm_clock_mhz"]["end"] == 1980
    assert "cv0-thermal_c" not in told["values"]  # it is off
    assert told["watched"] == ["counters", "thermal trips", "clocks", "clock event reasons"]
