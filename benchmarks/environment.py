"""On what was this measured: machine, system and versions, each known or missing with a reason."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Sequence

from deploy.board import read_board
from deploy.cpu import CPUINFO, read_cpu
from deploy.errors import DeviceError
from deploy.machine.clocks import governor
from deploy.machine.facts import Facts
from deploy.machine.memory import read_memory
from deploy.machine.sysfs import optional_text, read_text
from deploy.machine.throttling import ThrottleWatch as ThrottleWatch  # what a measurement needs

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
NOT_EMULATED = "none seen"
_THREADS = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "CUDA_VISIBLE_DEVICES",
)


def record(root: Path = Path("/"), packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """One dictionary; a field that could not be read is ``None`` and ``missing`` says why.

    Names in ``missing`` are dotted below the first level.  Versions come from package metadata:
    nothing is imported, torch least of all.  ``root`` is where ``/proc``, ``/sys`` and ``/etc`` are.
    """
    facts = Facts()
    _processor(facts, root)
    board = read_board(root)
    for field, value in board.to_dict().items():
        facts.values["board" if field == "model" else field] = value
    # A mode is compared by its name: the same number means another mode on another board.
    mode = board.power_mode
    facts.values["power_mode"] = None if mode is None else mode.name or f"number {mode.number}"
    facts.values["power_mode_number"] = None if mode is None else mode.number
    facts.missing.update(
        {"board" if field == "model" else field: why for field, why in board.missing.items()}
    )
    if mode is None:
        facts.missing["power_mode_number"] = facts.missing["power_mode"]
    _process(facts, root)
    versions = Facts()
    for name in packages:
        versions.put(name, _version(name), "not installed")
    facts.nest("versions", versions)
    return {**facts.values, "missing": facts.missing}


def _processor(facts: Facts, root: Path) -> None:
    cpuinfo = CPUINFO if root == Path("/") else root / "proc/cpuinfo"
    cpu = read_cpu(cpuinfo)
    facts.put("cpu_model", cpu.model, f"{cpuinfo} names no model")
    facts.put("architecture", platform.machine(), "")
    facts.put(
        "cpu_flags",
        [flag for flag in FLAGS if flag in cpu.flags] if cpu.flags else None,
        f"{cpuinfo} lists no flags",
    )
    facts.put("integer_instructions", list(cpu.integer_instructions), "")
    facts.put("virtual_machine", cpu.virtual, "")
    facts.put("emulation", cpu.emulation or NOT_EMULATED, "")
    facts.put("cores", os.cpu_count(), "this system does not tell")
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    none = "this system has no processor affinity"
    facts.put("usable_cores", None if affinity is None else len(affinity), none)
    facts.put("affinity", affinity, none)
    facts.read("memory_bytes", lambda: read_memory(root)["total_bytes"])
    facts.read("memory_available_bytes", lambda: read_memory(root)["available_bytes"])
    facts.read("governor", lambda: governor(root))
    facts.put("system", platform.system(), "")
    facts.read("distribution", lambda: _distribution(root))
    facts.put("kernel", platform.release(), "")
    facts.put("python", platform.python_version(), "")


def _process(facts: Facts, root: Path) -> None:
    """What else may touch the numbers: load, settings of threads, a battery, and the clocks' offset."""
    facts.read("load_average", lambda: float(read_text(root / "proc/loadavg").split()[0]))
    facts.put("thread_settings", {n: os.environ[n] for n in _THREADS if n in os.environ}, "")
    facts.read("power_supply", lambda: _power_supply(root))
    # Moves windows of this run onto the clock of an external power analyser, and back.
    facts.put("unix_minus_monotonic_s", time.time() - time.monotonic(), "")


def _distribution(root: Path) -> str:
    for line in read_text(root / "etc/os-release").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    raise DeviceError(f"{root / 'etc/os-release'}: names no system")


def _power_supply(root: Path) -> dict[str, str]:
    folder = root / "sys/class/power_supply"
    found = {
        path.name: " ".join(
            filter(None, [optional_text(path / "type"), optional_text(path / "status")])
        )
        for path in sorted(folder.glob("*"))
    }
    if not found:
        raise DeviceError(f"{folder} lists none: no battery is seen")
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
