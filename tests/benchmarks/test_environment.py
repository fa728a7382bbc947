"""Every field is there, known or with a reason; nothing is imported to know a version."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.environment import ThrottleWatch, record

OF_A_RUN = (  # what report.json has shown since its first version
    "cpu_model",
    "architecture",
    "cpu_flags",
    "cores",
    "usable_cores",
    "memory_bytes",
    "governor",
    "system",
    "kernel",
    "python",
    "versions",
    "missing",
)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_reads_the_files(tmp_path: Path) -> None:
    key = "Features" if platform.machine() in ("aarch64", "arm64") else "flags"
    write(
        tmp_path,
        proc__cpuinfo=f"model name: Fast\n{key}: fpu avx2 avx512_vnni asimddp unrelated\n",
        proc__meminfo="MemFree: 1 kB\nMemTotal:  2048 kB\nMemAvailable: 1024 kB\n",
        proc__loadavg="0.42 0.30 0.20 1/100 4242\n",
        etc__nv_tegra_release="# R36 (release), REVISION: 4.3, GCID: 1\n",
        var__lib__nvpmodel__status="pmode:0002 fmode:quiet\n",
        etc__nvpmodel="",
    )
    write(tmp_path, **{"etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=15W >\n"})
    write(tmp_path, **{"etc/os-release": 'NAME="Any"\nPRETTY_NAME="Any Linux 7"\n'})
    write(tmp_path, **{"sys/class/power_supply/BAT0/type": "Battery\n"})
    write(tmp_path, **{"sys/class/power_supply/BAT0/status": "Discharging\n"})
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    policy.mkdir(parents=True)
    (policy / "scaling_governor").write_text("performance\n")
    write(tmp_path, **{"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"})
    made = record(tmp_path, ("numpy", "no-such-package"))
    assert made["cpu_model"] == "Fast"
    assert made["cpu_flags"] == ["avx2", "avx512_vnni", "asimddp"]
    assert made["memory_bytes"] == 2048 * 1024
    assert made["memory_available_bytes"] == 1024 * 1024
    assert made["load_average"] == 0.42
    assert made["governor"] == "performance"
    assert made["distribution"] == "Any Linux 7"
    assert made["power_supply"] == {"BAT0": "Battery Discharging"}
    assert made["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (made["l4t"], made["jetpack"]) == ("36.4.3", "6.2")
    assert (made["power_mode"], made["power_mode_number"]) == ("15W", 2)
    assert made["versions"] == {"numpy": np.__version__, "no-such-package": None}
    assert made["missing"]["versions.no-such-package"] == "not installed"
    assert "governor" not in made["missing"]


def test_what_is_not_known_has_a_reason(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo="no total here\n")
    made = record(tmp_path, ())
    for field in ("cpu_model", "cpu_flags", "memory_bytes", "governor", "board", "power_mode"):
        assert made[field] is None
        assert made["missing"][field]
    unknown = {field for field, value in made.items() if value is None}
    assert unknown == {field for field in made["missing"] if "." not in field}
    for field in ("clocks", "thermal"):
        reasons = {name for name, value in made[field].items() if value is None}
        assert {f"{field}.{name}" for name in reasons} <= set(made["missing"])


def test_this_machine_is_json() -> None:
    made = record()
    assert json.loads(json.dumps(made)) == made
    assert made["usable_cores"] >= 1
    assert set(OF_A_RUN) <= set(made)


def test_clock_offset_moves_windows_to_the_wall_clock() -> None:
    import time

    offset_s = record()["unix_minus_monotonic_s"]
    assert abs(time.time() - time.monotonic() - offset_s) < 60


def test_a_measurement_finds_its_watch_here() -> None:
    watch = ThrottleWatch()
    watch.start()
    assert isinstance(watch.stop(), list)


def test_does_not_import_torch() -> None:
    code = ("import sys; from benchmarks.environment import record; record(); "
            "sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)")  # fmt: skip
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
