"""On what was this measured: machine, system and versions, each known or missing with a reason."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

from deploy.cpu import read_cpu

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "torch",
    "torch-pruning",
    "accelerate",
    "safetensors",
    "tensorrt",
)
# Instructions that decide which kernels a runtime picks for bf16 and for integers.
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def record(
    packages: Sequence[str] = PACKAGES, proc: Path = Path("/proc"), sysfs: Path = Path("/sys")
) -> dict[str, Any]:
    """A flat record; a field that could not be read is ``None`` and ``missing`` says why.

    Versions come from package metadata: nothing is imported, torch least of all.
    """
    cpu = read_cpu(proc / "cpuinfo")
    reasons: dict[str, str] = {}

    def known(field: str, value: Any, reason: str) -> Any:
        if value is None:
            reasons[field] = reason
        return value

    memory, memory_reason = _memory_bytes(proc / "meminfo")
    governor, governor_reason = _text(sysfs / "devices/system/cpu/cpu0/cpufreq/scaling_governor")
    cores, cores_reason = _usable_cores()
    return {
        "cpu_model": known("cpu_model", cpu.model, f"{proc / 'cpuinfo'} names no model"),
        "architecture": platform.machine(),
        "cpu_flags": known(
            "cpu_flags",
            [flag for flag in FLAGS if flag in cpu.flags] if cpu.flags else None,
            f"{proc / 'cpuinfo'} lists no flags",
        ),
        "cores": os.cpu_count(),
        "usable_cores": known("usable_cores", cores, cores_reason),
        "memory_bytes": known("memory_bytes", memory, memory_reason),
        "governor": known("governor", governor, governor_reason),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {
            name: known(f"versions.{name}", _version(name), "not installed") for name in packages
        },
        "missing": reasons,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> tuple[str | None, str]:
    try:
        return path.read_text(encoding="utf-8").strip(), ""
    except (OSError, UnicodeDecodeError) as error:
        return None, f"{path} cannot be read ({type(error).__name__})"


def _memory_bytes(meminfo: Path) -> tuple[int | None, str]:
    text, reason = _text(meminfo)
    for line in (text or "").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) == 3 and words[1].isdigit():
            return int(words[1]) * 1024, ""  # the file says kB and means KiB
    return None, reason or f"{meminfo} has no MemTotal"


def _usable_cores() -> tuple[int | None, str]:
    if not hasattr(os, "sched_getaffinity"):
        return None, "this system has no processor affinity"
    return len(os.sched_getaffinity(0)), ""
