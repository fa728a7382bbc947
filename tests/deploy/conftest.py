"""Hardware that is not there: boards as folders, a graphics card, a processor's energy counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@dataclass(frozen=True)
class Chip:
    """A power chip: bus and address, its rails in milliwatts, how its driver shows them."""

    place: str
    rails_mw: Mapping[str, int]
    layout: str = "hwmon"
    shunt_uohm: int = 5000
    millivolt: int = 5000


@dataclass(frozen=True)
class FakeBoard:
    model: str
    compatible: Sequence[str]
    release: str = ""
    chips: Sequence[Chip] = ()
    gpu: str = ""
    mode: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    l4t: str | None = None
    jetpack: str | None = None
    total_mw: int | None = None


def _release(major: int, revision: str) -> str:
    return f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64\n"


FAKES: dict[str, FakeBoard] = {
    "nano": FakeBoard(
        "NVIDIA Jetson Nano Developer Kit",
        ["nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"],
        _release(32, "7.1"),
        [Chip("6-0040", {"POM_5V_IN": 2545, "POM_5V_GPU": 40, "POM_5V_CPU": 549}, "iio")],
        gpu="57000000.gpu",
        mode="NV Power Mode: MAXN\n0\n",
        l4t="32.7.1",
        jetpack="4.6.x",
        total_mw=2545,
    ),
    "tx2": FakeBoard(
        "quill",
        ["nvidia,p2597-0000+p3310-1000", "nvidia,quill", "nvidia,tegra186"],
        _release(32, "7.4"),
        [
            Chip("0-0040", {"VDD_SYS_GPU": 150, "VDD_SYS_SOC": 300, "VDD_4V0_WIFI": 20}, "iio"),
            Chip("0-0041", {"VDD_IN": 2500, "VDD_SYS_CPU": 400, "VDD_SYS_DDR": 600}, "iio"),
            Chip("0-0042", {"VDD_MUX": 1200, "VDD_5V0_IO_SYS": 900, "VDD_3V3_SYS": 100}, "iio"),
        ],
        gpu="17000000.gp10b",
        mode="NV Power Mode: MAXP_CORE_ARM\n3\n",
        l4t="32.7.4",
        jetpack="4.6.x",
        total_mw=3700,
    ),
    "xavier-nx": FakeBoard(
        "NVIDIA Jetson Xavier NX Developer Kit",
        ["nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"],
        _release(35, "4.1"),
        [Chip("7-0040", {"VDD_IN": 3900, "VDD_CPU_GPU_CV": 1300, "VDD_SOC": 1000})],
        gpu="17000000.gv11b",
        mode="NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n",
        l4t="35.4.1",
        jetpack="5.1.x",
        total_mw=3900,
    ),
    "agx-xavier": FakeBoard(
        "Jetson-AGX",
        ["nvidia,p2972-0000", "nvidia,p2888-0001", "nvidia,tegra194"],
        _release(32, "7.3"),
        [
            Chip("1-0040", {"GPU": 470, "CPU": 460, "SOC": 1245}, "iio"),
            Chip("1-0041", {"CV": 0, "VDDRQ": 310, "SYS5V": 2770}, "iio"),
        ],
        gpu="17000000.gv11b",
        mode="NV Power Mode: MODE_30W_ALL\n3\n",
        l4t="32.7.3",
        jetpack="4.6.x",
        total_mw=5255,
    ),
    "orin-nano": FakeBoard(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        ["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"],
        _release(36, "4.3"),
        [Chip("1-0040", {"VDD_IN": 4820, "VDD_CPU_GPU_CV": 520, "VDD_SOC": 1470})],
        gpu="17000000.gpu",
        mode="NV Power Mode: 25W\n1\n",
        l4t="36.4.3",
        jetpack="6.2",
        total_mw=4820,
    ),
    "orin-nx": FakeBoard(
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        ["nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234"],
        _release(39, "2.1"),
        [Chip("1-0040", {"VDD_IN": 7280, "VDD_CPU_GPU_CV": 2100, "VDD_SOC": 1900})],
        gpu="17000000.gpu",
        mode="NV Power Mode: 25W\n3\n",
        l4t="39.2.1",
        jetpack="7.2.1",
        total_mw=7280,
    ),
    "agx-orin": FakeBoard(
        "NVIDIA Jetson AGX Orin Developer Kit",
        ["nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"],
        _release(36, "5.0"),
        [
            Chip(
                "1-0040",
                {"VDD_GPU_SOC": 4800, "VDD_CPU_CV": -400, "VIN_SYS_5V0": 3840},
                shunt_uohm=2000,
                millivolt=20000,
            ),
            Chip(
                "1-0041",
                {"NC": 0, "VDDQ_VDD2_1V8AO": 700, "NC ": 0},
                shunt_uohm=2000,
            ),
        ],
        gpu="17000000.gpu",
        mode="NV Power Mode: MAXN\n0\n",
        l4t="36.5.0",
        jetpack="6.2.2",
        total_mw=8240,
    ),
    "thor": FakeBoard(
        "NVIDIA Jetson AGX Thor Developer Kit",
        ["nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"],
        _release(38, "2.0"),
        [
            Chip("2-0040", {"VDD_GPU": 1960, "VDD_CPU_SOC_MSS": 5890, "VIN_SYS_5V0": 5635}),
            Chip("2-0044", {"VIN": 19780}, "ina238"),
        ],
        gpu="gpu-gpc-0",
        mode="NV Power Mode: MAXN\n0\n",
        l4t="38.2.0",
        jetpack="7.0",
        total_mw=19780,
    ),
}


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def add_chip(root: Path, chip: Chip, node: int) -> None:
    """One chip as its driver shows it; ``node`` is the number that changes between boots."""
    drivers = "sys/bus/i2c/drivers"
    files: dict[str, str] = {}
    if chip.layout == "ina238":
        folder = f"{drivers}/ina238/{chip.place}/hwmon/hwmon{node}"
        files[f"{folder}/power1_input"] = f"{next(iter(chip.rails_mw.values())) * 1000}\n"
        files[f"{folder}/name"] = "ina238\n"
    for channel, (rail, power_mw) in enumerate(chip.rails_mw.items()):
        if chip.layout == "iio":
            folder = f"{drivers}/ina3221x/{chip.place}/iio:device{node}"
            files[f"{folder}/rail_name_{channel}"] = f"{rail}\n"
            files[f"{folder}/in_power{channel}_input"] = f"{power_mw}\n"
        elif chip.layout == "hwmon":
            folder = f"{drivers}/ina3221/{chip.place}/hwmon/hwmon{node}"
            files[f"{folder}/in{channel + 1}_label"] = f"{rail}\n"
            files[f"{folder}/in{channel + 1}_input"] = f"{chip.millivolt}\n"
            current_ma = power_mw * 1000 // chip.millivolt
            assert current_ma * chip.millivolt == power_mw * 1000, "choose a power that fits"
            files[f"{folder}/curr{channel + 1}_input"] = f"{current_ma}\n"
            files[f"{folder}/shunt{channel + 1}_resistor"] = f"{chip.shunt_uohm}\n"
            files[f"{folder}/update_interval"] = "7\n"
            files[f"{folder}/in7_label"] = "sum of shunt voltages\n"
            files[f"{folder}/in7_input"] = "99999\n"
    write(root, files)


def add_program(root: Path, name: str, script: str) -> Path:
    path = root / "usr/bin" / name
    write(root, {f"usr/bin/{name}": f"#!/bin/sh\n{script}\n"})
    path.chmod(0o755)
    return path


def make_board(root: Path, name: str, first_node: int = 3) -> FakeBoard:
    board = FAKES[name]
    root.mkdir(exist_ok=True)
    write(
        root,
        {
            "proc/device-tree/model": board.model + "\0",
            "proc/device-tree/compatible": "\0".join(board.compatible) + "\0",
            "etc/nv_tegra_release": board.release,
            f"sys/class/devfreq/{board.gpu}/governor": "nvhost_podgov\n",
            f"sys/class/devfreq/{board.gpu}/min_freq": "306000000\n",
            f"sys/class/devfreq/{board.gpu}/max_freq": "918000000\n",
            f"sys/class/devfreq/{board.gpu}/cur_freq": "306000000\n",
            "sys/class/devfreq/2c60000.external-memory-controller/cur_freq": "1\n",
            "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1 2 3\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_driver": "tegra194\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
            "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1728000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48500\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_type": "active\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_temp": "46000\n",
            "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
            "sys/class/thermal/thermal_zone0/trip_point_1_temp": "99000\n",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "-256000\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "1\n",
            "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert\n",
            "sys/class/thermal/cooling_device1/cur_state": "0\n",
            "sys/class/hwmon/hwmon0/name": "pwmfan\n",
            "sys/class/hwmon/hwmon0/pwm1": "77\n",
            "sys/class/hwmon/hwmon1/name": "soctherm_oc\n",
            "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
            "sys/class/hwmon/hwmon1/oc3_event_cnt": "5\n",
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n",
            "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n",
            **board.extra,
        },
    )
    add_program(root, "nvpmodel", f"printf '{board.mode.encode('unicode_escape').decode()}'")
    for number, chip in enumerate(board.chips):
        add_chip(root, chip, first_node + number)
    return board


@pytest.fixture
def fake_board(tmp_path: Path) -> Callable[..., tuple[Path, FakeBoard]]:
    """A function: name of a board -> the root of its files, and what is true of it."""

    def make(name: str, first_node: int = 3) -> tuple[Path, FakeBoard]:
        root = tmp_path / name
        return root, make_board(root, name, first_node)

    return make


@pytest.fixture(params=list(FAKES))
def every_board(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, FakeBoard]:
    """Each board in turn: the root of its files, and what is true of it."""
    return tmp_path / "root", make_board(tmp_path / "root", request.param)


@pytest.fixture
def write_files() -> Callable[[Path, Mapping[str, str]], None]:
    return write


@pytest.fixture
def program() -> Callable[[Path, str, str], Path]:
    """A function: root, name, shell script -> the program that it made there."""
    return add_program


class FakeNvmlError(Exception):
    """What ``pynvml.NVMLError`` is to the code: an exception with a code."""

    def __init__(self, code: int) -> None:
        super().__init__({3: "Not Supported", 999: "Unknown Error"}.get(code, f"code {code}"))


def make_nvml(without: Sequence[str] = (), name: str | bytes = "Fast Card") -> Any:
    """The functions of pynvml that are used; those in ``without`` answer NotSupported."""
    state = SimpleNamespace(joules=0.0, watts=100.0, reasons=0)
    card = object()

    def answer(question: str, value: Callable[[], Any]) -> Callable[..., Any]:
        def call(handle: object, *_: Any) -> Any:
            assert handle is card
            if question in without:
                raise FakeNvmlError(3)
            return value()

        return call

    def energy() -> int:
        state.joules += 1.5
        return round(state.joules * 1e3)

    def fields(_handle: object, ids: Sequence[int]) -> list[Any]:
        assert list(ids) == [186]
        missing = "instant" in without
        value = SimpleNamespace(uiVal=round(state.watts * 1e3))
        return [SimpleNamespace(nvmlReturn=3 if missing else 0, value=value)]

    return SimpleNamespace(
        NVMLError=FakeNvmlError,
        NVML_SUCCESS=0,
        NVML_FI_DEV_POWER_INSTANT=186,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        state=state,
        card=card,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: card,
        nvmlDeviceGetHandleByUUID=lambda uuid: card,
        nvmlDeviceGetName=lambda handle: name,
        nvmlDeviceGetFieldValues=fields,
        nvmlDeviceGetPowerUsage=answer("usage", lambda: round(state.watts * 1e3) - 500),
        nvmlDeviceGetTotalEnergyConsumption=answer("energy", energy),
        nvmlDeviceGetCudaComputeCapability=answer("compute", lambda: (9, 0)),
        nvmlDeviceGetMemoryInfo=answer("memory", lambda: SimpleNamespace(total=1 << 30)),
        nvmlDeviceGetClockInfo=answer("clocks", lambda: 1980),
        nvmlDeviceGetMaxClockInfo=answer("clocks", lambda: 1980),
        nvmlDeviceGetTemperature=answer("temperature", lambda: 41),
        nvmlDeviceGetEnforcedPowerLimit=answer("limit", lambda: 700000),
        nvmlDeviceGetCurrentClocksEventReasons=answer("reasons", lambda: state.reasons),
        nvmlDeviceGetPersistenceMode=answer("persistence", lambda: 1),
    )


@pytest.fixture
def fake_nvml() -> Callable[..., Any]:
    return make_nvml


def make_rapl(root: Path) -> Path:
    """Two packages, one with core, uncore and memory, and a platform domain around them."""
    zones = {
        "0": ("package-0", 1_000_000),
        "0:0": ("core", 500_000),
        "0:1": ("uncore", 100_000),
        "0:2": ("dram", 250_000),
        "1": ("package-1", 2_000_000),
        "2": ("psys", 9_000_000),
    }
    for number, (name, energy_uj) in zones.items():
        folder = root / f"sys/class/powercap/intel-rapl:{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
    (root / "sys/class/powercap/intel-rapl-mmio:0").mkdir()
    return root


@pytest.fixture
def rapl_tree() -> Callable[[Path], Path]:
    return make_rapl
