"""Lines of tegrastats from public logs, every format since JetPack 4; and a meter that runs a fake."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import DeviceError
from deploy.power.boards import choose_total
from deploy.power.finding import find_meter
from deploy.power.tegrastats import Power, TegrastatsMeter, parse

LINES = {
    "nano": "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) CPU [24%@1224,15%@1224,"
    "13%@1224,10%@1224] EMC_FREQ 0% GR3D_FREQ 0% PLL@21C CPU@25C PMIC@100C GPU@23.5C AO@33.5C "
    "thermal@24.5C POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529",
    "xavier-nx": "RAM 2673/7765MB (lfb 118x4MB) SWAP 0/3883MB (cached 0MB) CPU [12%@1190,8%@1190,"
    "4%@1190,off,off,off] EMC_FREQ 7% GR3D_FREQ 33% AO@35C GPU@33C PMIC@100C AUX@33.5C CPU@35C "
    "thermal@33.9C VDD_IN 3902/3611 VDD_CPU_GPU_CV 1331/1180 VDD_SOC 997/941",
    "agx-xavier": "[0%@1190,1%@1190,...] EMC_FREQ 0%@1331 GR3D_FREQ 0%@114 VIC_FREQ 115 APE 150 "
    "AUX@36C CPU@36.5C thermal@35.7C Tboard@37C AO@35C GPU@35C Tdiode@38.75C PMIC@50C "
    "GPU 467mW/467mW CPU 467mW/467mW SOC 1245mW/1245mW CV 0mW/0mW VDDRQ 311mW/311mW "
    "SYS5V 2768mW/2768mW",
    "agx-orin-5": "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) "
    "CPU [0%@729,...] EMC_FREQ 0%@204 GR3D_FREQ 0%@114 GR3D2_FREQ 0%@114 NVJPG1 729 VIC_FREQ 729 "
    "APE 233 CV0@-256C CPU@43.5C Tdiode@32.5C SOC2@40.062C SOC0@40.5C CV1@-256C GPU@38.156C "
    "SOC1@39.125C CV2@-256C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV 798mW/798mW VIN_SYS_5V0 "
    "3842mW/3842mW NC 0mW/0mW VDDQ_VDD2_1V8AO 707mW/707mW NC 0mW/0mW",
    "agx-orin-6": "03-17-2024 18:54:10 RAM 10239/62841MB (lfb 442x4MB) SWAP 1/31421MB (cached 0MB) "
    "CPU [0%@1728,...,off,off,off,off] GR3D_FREQ 0% cpu@37.5C tboard@27C soc2@34.562C tdiode@27.5C "
    "soc0@34.531C tj@37.5C soc1@33.656C VDD_GPU_SOC 1592mW/1592mW VDD_CPU_CV -398mW/-398mW "
    "VIN_SYS_5V0 2624mW/2624mW VDDQ_VDD2_1V8AO 403mW/403mW",
    "agx-orin-7": "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,...] EMC_FREQ "
    "3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off ... APE 174 cpu@52.968C/52.968C "
    "soc2@48.406C/48.406C soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC "
    "5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW",
    "orin-nano-6": "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached "
    "174MB) CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C "
    "soc2@49.031C soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV "
    "518mW/518mW VDD_SOC 1475mW/1475mW",
    "orin-nano-root": "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) "
    "CPU [15%@729,...] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off NVJPG1 off VIC off "
    "OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C tj@53.968C soc1@51.656C "
    "VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW",
    "orin-nano-7": "10-01-2026 20:36:32 RAM 974/7546MB (lfb 6x4MB) SWAP 0/5821MB (cached 0MB) CPU "
    "[0%@729,...] GR3D_FREQ 12% cpu@49.843C/49.843C soc2@49.156C/49.156C soc0@50.187C/50.187C "
    "gpu@50.875C/50.875C tj@50.875C/50.875C soc1@50.218C/50.218C VDD_IN 4548mW/4548mW/4548mW "
    "VDD_CPU_GPU_CV 483mW/483mW/483mW VDD_SOC 1489mW/1489mW/1489mW",
    "orin-nx-7": "10-01-2026 20:36:35 RAM 2432/15598MB (lfb 4x4MB) SWAP 0/6144MB (cached 0MB) CPU "
    "[55%@1036,9%@1036,24%@1036,64%@1036,off,off,0%@729,0%@729] GR3D_FREQ 0% cv0@56.281C/56.281C "
    "cpu@57.156C/57.156C ... tj@59.687C/59.687C soc1@59.687C/59.687C cv2@56.281C/56.281C "
    "VDD_IN 7280mW/7280mW/7280mW",
    "thor-71": "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,...] EMC_FREQ "
    "0%@2750 GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 ... APE 300 cpu@37.343C tj@38.875C "
    "soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW "
    "VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW",
    "thor-72": "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU "
    "[2%@972,...] cpu@60.406C tj@63.281C soc012@58.468C gpu@62.906C soc345@63.281C VDD_GPU "
    "37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW VIN_SYS_5V0 "
    "18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW",
}

# line: (rails now in mW, total in mW with its board, memory, GPU load and clocks, one temperature)
TRUTH: dict[str, tuple[dict[str, int], int, str, tuple[int, int] | None, Any, Any, Any]] = {
    "nano": (
        {"POM_5V_IN": 2545, "POM_5V_GPU": 0, "POM_5V_CPU": 549},
        2545,
        "NVIDIA Jetson Nano Developer Kit",
        (1766, 3964),
        (0, ()),
        ("gpu", 23.5),
        4,
    ),
    "xavier-nx": (
        {"VDD_IN": 3902, "VDD_CPU_GPU_CV": 1331, "VDD_SOC": 997},
        3902,
        "NVIDIA Jetson Xavier NX Developer Kit",
        (2673, 7765),
        (33, ()),
        ("thermal", 33.9),
        6,
    ),
    "agx-xavier": (
        {"GPU": 467, "CPU": 467, "SOC": 1245, "CV": 0, "VDDRQ": 311, "SYS5V": 2768},
        5258,
        "Jetson-AGX",
        None,
        (0, (114,)),
        ("tdiode", 38.75),
        2,
    ),
    "agx-orin-5": (
        {"VDD_GPU_SOC": 4788, "VDD_CPU_CV": 798, "VIN_SYS_5V0": 3842, "VDDQ_VDD2_1V8AO": 707},
        9428,
        "Jetson AGX Orin Developer Kit",
        (1205, 30623),
        (0, (114,)),
        ("cv0", None),
        1,
    ),
    "agx-orin-6": (
        {"VDD_GPU_SOC": 1592, "VDD_CPU_CV": -398, "VIN_SYS_5V0": 2624, "VDDQ_VDD2_1V8AO": 403},
        3818,
        "NVIDIA Jetson AGX Orin Developer Kit",
        (10239, 62841),
        (0, ()),
        ("tboard", 27.0),
        5,
    ),
    "agx-orin-7": (
        {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500},
        13907,
        "NVIDIA Jetson AGX Orin Developer Kit",
        (20642, 62817),
        (12, (1300, 1300)),
        ("cpu", 52.968),
        1,
    ),
    "orin-nano-6": (
        {"VDD_IN": 4824, "VDD_CPU_GPU_CV": 518, "VDD_SOC": 1475},
        4824,
        "NVIDIA Jetson Orin Nano Developer Kit",
        (3452, 7620),
        (0, ()),
        ("soc0", 50.0),
        6,
    ),
    "orin-nano-root": (
        {"VDD_IN": 12479, "VDD_CPU_GPU_CV": 4667, "VDD_SOC": 2817},
        12479,
        "NVIDIA Jetson Orin Nano Developer Kit",
        (6185, 7620),
        (63, (621,)),
        ("gpu", 53.343),
        1,
    ),
    "orin-nano-7": (
        {"VDD_IN": 4548, "VDD_CPU_GPU_CV": 483, "VDD_SOC": 1489},
        4548,
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        (974, 7546),
        (12, ()),
        ("gpu", 50.875),
        1,
    ),
    "orin-nx-7": (
        {"VDD_IN": 7280},
        7280,
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        (2432, 15598),
        (0, ()),
        ("tj", 59.687),
        8,
    ),
    "thor-71": (
        {"VDD_GPU": 1962, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780},
        19780,
        "NVIDIA Jetson AGX Thor Developer Kit",
        (105265, 125772),
        (None, (314, 314, 314)),
        ("soc012", 37.468),
        1,
    ),
    "thor-72": (
        {"VDD_GPU": 37528, "VDD_CPU_SOC_MSS": 18961, "VIN_SYS_5V0": 18331, "VIN": 87426},
        87426,
        "NVIDIA Jetson AGX Thor Developer Kit",
        (36529, 125749),
        (None, ()),
        ("gpu", 62.906),
        1,
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_every_format(name: str) -> None:
    rails, total_mw, model, memory, (load, clocks), (sensor, heat_c), cores = TRUTH[name]
    stats = parse(LINES[name])
    assert {rail: power.now_mw for rail, power in stats.rails.items()} == rails
    total = choose_total(stats.rails, model)
    assert sum(stats.rails[rail].now_mw for rail in total.rails) == total_mw
    seen = (stats.memory_used_mb, stats.memory_total_mb)
    assert seen == (memory or (None, None))
    assert (stats.gpu_load_percent, stats.gpu_clocks_mhz) == (load, clocks)
    assert stats.temperatures_c[sensor] == heat_c
    assert len(stats.cores) == cores
    assert (stats.stamp is not None) == LINES[name][2:3].startswith("-")


def test_details() -> None:
    thor = parse(LINES["thor-72"])
    assert thor.rails["VIN"] == Power(now_mw=87426, average_mw=43713, maximum_mw=87426)
    assert thor.stamp == "07-02-2026 13:45:44"
    orin = parse(LINES["agx-orin-7"])
    assert (orin.emc_load_percent, orin.emc_clock_mhz) == (3, 3199)
    assert orin.peaks_c["gpu"] == 47.625
    assert parse(LINES["agx-orin-5"]).temperatures_c["cv2"] is None  # -256 is off
    assert parse(LINES["xavier-nx"]).cores == ((12, 1190), (8, 1190), (4, 1190), None, None, None)
    assert parse(LINES["nano"]).rails["POM_5V_CPU"] == Power(549, 529, None)


@pytest.mark.parametrize("line", ["", "Permission denied", "usage: tegrastats [-options]"])
def test_what_is_no_line(line: str) -> None:
    with pytest.raises(DeviceError, match="is none of its lines"):
        parse(line)


@given(name=st.sampled_from(list(LINES)), cut=st.integers(0, 400), noise=st.text(max_size=20))
def test_a_line_that_is_cut_or_mangled_is_read_or_refused(name: str, cut: int, noise: str) -> None:
    line = LINES[name]
    with contextlib.suppress(DeviceError):
        stats = parse(line[:cut] + noise + line[cut:])
        assert all(isinstance(power.now_mw, int) for power in stats.rails.values())


SPEAKS = """shift; i=0; while [ $i -lt 400 ]; do
echo "RAM 1/2MB VDD_IN $((4000 + i))mW/1mW VDD_SOC 5mW/5mW"; i=$((i + 1)); sleep 0.01; done"""


def meter_of(path: Path, **settings: Any) -> TegrastatsMeter:
    total = choose_total(["VDD_IN", "VDD_SOC"], "NVIDIA Jetson Orin Nano Developer Kit")
    return TegrastatsMeter(total, 0.01, (str(path),), **settings)


def test_a_meter_runs_the_tool(tmp_path: Path, program: Callable[[Path, str, str], Path]) -> None:
    meter = meter_of(program(tmp_path, "tegrastats", SPEAKS))
    meter.start()
    trace = meter.stop()
    assert len(trace.time_s) >= 2
    assert trace.power_w[:2].tolist() == [4.0, 4.001]
    assert set(trace.rails) == {"VDD_IN", "VDD_SOC"}
    assert trace.updates == len(trace.time_s)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'cannot open: need root'; exit 1", "ended after 0 lines: it said 'cannot open"),
        ("echo RAM 1/2MB; sleep 5", "prints no VDD_IN; it prints no rails at all"),
        ("sleep 5", "printed nothing for 0.2 s"),
    ],
)
def test_a_tool_that_does_not_help(
    tmp_path: Path, program: Callable[[Path, str, str], Path], script: str, reason: str
) -> None:
    meter = meter_of(program(tmp_path, "tegrastats", script), wait_s=0.2)
    with pytest.raises(DeviceError, match=reason) as caught:
        meter.start()
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match="does not run"):
        meter.stop()


def test_a_tool_that_dies_in_the_middle(
    tmp_path: Path, program: Callable[[Path, str, str], Path]
) -> None:
    path = program(tmp_path, "tegrastats", "echo RAM 1/2MB VDD_IN 4000/4000 VDD_SOC 1/1; exit 0")
    meter = meter_of(path)
    meter.start()
    with pytest.raises(DeviceError, match="ended after 1 lines"):
        meter.stop()


def test_the_tool_is_the_fallback_where_sysfs_is_not_there(
    fake_board: Callable[..., Any], program: Callable[[Path, str, str], Path]
) -> None:
    root, _ = fake_board("orin-nx")
    for file in (root / "sys/bus/i2c").rglob("*_label"):
        file.unlink()
    program(root, "tegrastats", SPEAKS)
    told = find_meter(root).describe()
    assert told["name"] == "tegrastats"
    assert told["total"] == ["VDD_IN"]
    assert any("sysfs: ina: no INA3221" in remark for remark in told["remarks"])


def test_a_board_that_is_not_known_is_not_known_to_the_tool_either(
    fake_board: Callable[..., Any],
    program: Callable[[Path, str, str], Path],
    write_files: Callable[[Path, Any], None],
) -> None:
    root, _ = fake_board("orin-nano")
    node = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write_files(root, {f"{node}/in1_label": "NC\n"})
    program(root, "tegrastats", "echo this would say something else; exit 1")
    with pytest.raises(DeviceError, match="rails here: VDD_CPU_GPU_CV, VDD_SOC") as caught:
        find_meter(root)
    assert "tegrastats" not in str(caught.value)
