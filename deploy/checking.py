"""Is this machine fit for what is wanted?  What it is and has, what stands in the way, what to do.

``problems`` refuse, ``warnings`` are to be known.  Everything is asked of the machine itself; a board
over ssh asks itself.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from deploy.board import Board, read_board
from deploy.cpu import CPUINFO, read_cpu
from deploy.errors import CompressDeployError, DeviceError
from deploy.machine.clocks import locked
from deploy.machine.jetpack import jetpack_of
from deploy.machine.memory import read_disk, read_memory
from deploy.power.finding import find_meter, survey

RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt_rtx")
SPARE_BYTES = 32 << 20
_NEAR_TRIP_C = 5.0
# What a provider needs: the module, and in ONNX Runtime the name it goes by there.
_NEEDS = {
    "ort-cpu": ("onnxruntime", "CPUExecutionProvider"),
    "ort-cuda": ("onnxruntime", "CUDAExecutionProvider"),
    "ort-tensorrt": ("onnxruntime", "TensorrtExecutionProvider"),
    "tensorrt": ("tensorrt", None),
    "tensorrt-rtx": ("tensorrt_rtx", None),
}


def check(
    root: Path = Path("/"),
    *,
    folder: Path = Path(),
    provider: str | None = None,
    power: bool = False,
    meter: str | None = None,
    total: Sequence[str] = (),
    runtimes: Sequence[str] = RUNTIMES,
    find_runtime: Callable[[str], Any] = importlib.import_module,
) -> dict[str, Any]:
    """``ready``, ``problems`` and ``warnings``, and everything that was found out.

    ``folder`` is where files would be kept.  ``provider`` and ``power`` are what is needed; ``meter``
    and ``total`` as for ``find_meter``.  Without a provider any runtime will do.
    """
    board = read_board(root)
    cpu = read_cpu(CPUINFO if root == Path("/") else root / "proc/cpuinfo")
    found_runtimes = {name: _runtime(name, find_runtime) for name in runtimes}
    problems = _runtime_problems(provider, found_runtimes, board)
    warnings: list[str] = []
    memory = _or_missing(lambda: dict(read_memory(root)))
    disk = _or_missing(lambda: read_disk(folder))
    for what, place, key in (("memory", memory, "available_bytes"), ("disk", disk, "free_bytes")):
        if place.get(key) is not None and place[key] < SPARE_BYTES:
            problems.append(
                f"{what}: {place[key]} bytes are free, {SPARE_BYTES} are needed; free some"
            )
    if disk.get("writable") is False:
        problems.append(f"{disk['folder']}: cannot be written to; choose another folder")
    chosen = _or_missing(
        lambda: find_meter(root, provider=provider, wanted=meter, total=total).describe()
    )
    if "missing" in chosen:
        if power:
            problems.append(f"no energy: {chosen['missing']}")
        else:  # on a board it is worth a word; most other machines have no sensor
            why = chosen["missing"] if board.jetson else "no power sensor here that can be read"
            warnings.append(f"no energy: {why}")
    warnings += _state(board)
    if cpu.emulation:
        warnings.append(f"{cpu.emulation}: results count, timings do not")
    if cpu.saturates_u8s8:
        warnings.append(
            "this processor has no VNNI: sessions set session.x64quantprecision, which costs time"
        )
    return {
        "ready": not problems,
        "problems": problems,
        "warnings": warnings,
        "processor": {
            "model": cpu.model,
            "architecture": cpu.architecture,
            "integer_instructions": list(cpu.integer_instructions),
            "emulation": cpu.emulation,
        },
        "python": platform.python_version(),
        "board": {**board.to_dict(), "missing": board.missing},
        "runtimes": found_runtimes,
        "memory": memory,
        "disk": disk,
        "meter": chosen,
        "meters": {
            candidate.name: {"missing": candidate.why}
            if candidate.meter is None
            else candidate.meter.describe()
            for candidate in survey(root, total)
        },
    }


def require(found: Mapping[str, Any]) -> None:
    """Refuse a machine that is not fit.

    Raises:
        DeviceError: There are problems; names all of them.
    """
    if not found["ready"]:
        raise DeviceError("not ready: " + "; ".join(found["problems"]))


def _runtime(name: str, find_runtime: Callable[[str], Any]) -> dict[str, Any]:
    try:
        module = find_runtime(name)
    except Exception as error:  # a runtime whose libraries are broken raises whatever it likes
        return {"version": None, "missing": f"{name}: {' '.join(str(error).split())[:200]}"}
    found: dict[str, Any] = {"version": str(getattr(module, "__version__", "unknown"))}
    if hasattr(module, "get_available_providers"):
        found["providers"] = list(module.get_available_providers())
    return found


def _runtime_problems(
    provider: str | None, found: Mapping[str, Mapping[str, Any]], board: Board
) -> list[str]:
    if provider is None:
        if any(runtime.get("version") for runtime in found.values()):
            return []
        return [
            f"no runtime can be imported ({'; '.join(str(r['missing']) for r in found.values())}); "
            f"install onnxruntime with pip{_jetpack_hint(board)}"
        ]
    if provider not in _NEEDS:
        return [f"provider: there is no {provider!r}; choose from {', '.join(_NEEDS)}"]
    module, name = _NEEDS[provider]
    runtime = found.get(module, {"version": None, "missing": f"{module}: not looked for"})
    if not runtime.get("version"):
        return [f"{provider}: {runtime['missing']}{_jetpack_hint(board)}"]
    if name is not None and name not in runtime.get("providers", ()):
        return [
            f"{provider}: this onnxruntime {runtime['version']} has no {name}, only "
            f"{', '.join(runtime.get('providers', ()))}; install a build that has it"
        ]
    return []


def _jetpack_hint(board: Board) -> str:
    if board.l4t is None:
        return ""
    try:
        release = jetpack_of(board.l4t)
    except DeviceError:
        return ""
    return (
        f"; JetPack {board.jetpack} brings TensorRT {release.tensorrt} for Python {release.python}: "
        "use that Python"
    )


def _state(board: Board) -> list[str]:
    """What of the machine's present state disturbs a measurement."""
    said = []
    clocks, thermal = board.fields["clocks"], board.fields["thermal"]
    free = [d["name"] for d in [*(clocks["cpu"] or ()), *(clocks["gpu"] or ())] if not locked(d)]
    if free and board.jetson:
        said.append(
            f"clocks of {', '.join(free)} move with the load; sudo jetson_clocks locks them"
        )
    if board.jetson and board.power_mode is None:
        said.append(f"the power mode is not known: {board.missing['power_mode']}")
    for zone, trip_c in (thermal["trips_c"] or {}).items():
        now_c = thermal["temperatures_c"].get(zone)
        if now_c is not None and now_c > trip_c - _NEAR_TRIP_C:
            said.append(
                f"{zone} is at {now_c:g} °C, close to its trip at {trip_c:g} °C; let it cool"
            )
    said += [f"{name} is slowed down against heat" for name in thermal["slowed_by"] or ()]
    return said


def _or_missing(question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return question()
    except CompressDeployError as error:
        return {"missing": str(error)}
