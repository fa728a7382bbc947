"""Clocks and what governs them: processor, graphics, memory; in MHz, from sysfs."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from deploy.errors import DeviceError
from deploy.machine.facts import Facts, first_of, run_tool
from deploy.machine.sysfs import optional_number, optional_text, read_number

_CPU = Path("sys/devices/system/cpu")
_DEVFREQ = Path("sys/class/devfreq")
# 17000000.gpu (Orin, JetPack 6), 17000000.ga10b (JetPack 5), gv11b (Xavier), gp10b (TX2),
# 57000000.gpu (Nano), gpu-gpc-0 (Thor)
_GPU = re.compile(r"gpu|\.g[a-z]\d\d[a-z]$")
_EMC_RATES = (  # in Hz; debugfs, so root alone
    Path("sys/kernel/debug/bpmp/debug/clk/emc/rate"),
    Path("sys/kernel/debug/clk/emc/clk_rate"),
    Path("sys/kernel/debug/tegra_bwmgr/emc_rate"),
)


def read_clocks(root: Path) -> Facts:
    """``cpu`` and ``gpu``: a list of domains each; ``emc_mhz``; what ``jetson_clocks --show`` says."""
    facts = Facts()
    facts.put("cpu", cpu_domains(root) or None, f"no cpufreq in {root / _CPU}")
    facts.put("gpu", gpu_domains(root) or None, f"no GPU in {root / _DEVFREQ}")
    facts.read("emc_mhz", lambda: first_of(*(partial(_mhz, root / rate) for rate in _EMC_RATES)))
    facts.read("jetson_clocks", lambda: run_tool(root, "jetson_clocks", "--show").splitlines())
    return facts


def cpu_domains(root: Path) -> list[dict[str, Any]]:
    """One entry for each set of cores that share a clock; what cannot be read is ``None``."""
    folders = sorted((root / _CPU / "cpufreq").glob("policy*"), key=_number)
    folders = folders or sorted((root / _CPU).glob("cpu[0-9]*/cpufreq"))
    return [
        {
            "name": folder.name if folder.name != "cpufreq" else folder.parent.name,
            "cores": optional_text(folder / "related_cpus"),
            "governor": optional_text(folder / "scaling_governor"),
            "driver": optional_text(folder / "scaling_driver"),
            **_range(folder, ("scaling_min_freq", "scaling_max_freq", "scaling_cur_freq"), 1e-3),
            "hardware_max_mhz": _scaled(optional_number(folder / "cpuinfo_max_freq"), 1e-3),
        }
        for folder in folders
    ]


def gpu_domains(root: Path) -> list[dict[str, Any]]:
    """The clocks of an integrated GPU, by devfreq."""
    return [
        {
            "name": folder.name,
            "governor": optional_text(folder / "governor"),
            **_range(folder, ("min_freq", "max_freq", "cur_freq"), 1e-6),
        }
        for folder in sorted((root / _DEVFREQ).glob("*"))
        if _GPU.search(folder.name)
    ]


def locked(domain: dict[str, Any]) -> bool:
    """Whether a domain has one clock only, as after ``jetson_clocks``."""
    return domain["min_mhz"] is not None and domain["min_mhz"] == domain["max_mhz"]


def governor(root: Path) -> str:
    """The governor of the first core.

    Raises:
        DeviceError: The kernel scales no clock here, as in most virtual machines.
    """
    domains = cpu_domains(root)
    if not domains or domains[0]["governor"] is None:
        raise DeviceError(f"no cpufreq in {root / _CPU}; virtual machines have none")
    return str(domains[0]["governor"])


def _mhz(path: Path) -> float:
    return read_number(path) / 1e6


def _range(folder: Path, files: tuple[str, str, str], unit: float) -> dict[str, float | None]:
    names = ("min_mhz", "max_mhz", "now_mhz")
    return {name: _scaled(optional_number(folder / file), unit) for name, file in zip(names, files)}


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _number(path: Path) -> int:
    digits = re.sub(r"\D", "", path.name)
    return int(digits) if digits else 0
