"""A device's check in lines to read: what it is and has, its problems first."""

from __future__ import annotations

from typing import Any, Iterator, Mapping


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text; ``found`` is what ``check_device`` found, or the part of it that there is."""
    for problem in found["problems"]:
        yield "problem", problem
    for warning in found.get("warnings", ()):
        yield "warning", warning
    board, here = found.get("board", {}), found.get("environment", {})
    yield "board", _some(board.get("model"))
    if board.get("l4t") or board.get("jetpack"):
        yield "JetPack", f"{_some(board['jetpack'])}, L4T {_some(board['l4t'])}"
    yield "processor", _listed(here.get("cpu_model"), here.get("architecture", here.get("machine")))
    yield "system", _listed(here.get("system"), here.get("kernel"), f"Python {here.get('python')}")
    yield from _software(found, board)
    if board.get("power_mode"):
        mode = board["power_mode"]
        yield "power mode", f"{_some(mode['name'])} (number {mode['number']})"
    yield from _clocks(board.get("clocks") or {}, here)
    memory, disk = found.get("memory", {}), found.get("disk", {})
    if "available_bytes" in memory:
        free, total = memory["available_bytes"], memory.get("total_bytes")
        yield "memory", f"{_size(free)} of {_size(total)} free" if total else f"{_size(free)} free"
    if disk:
        yield "disk", f"{_size(disk['free_bytes'])} free in {disk['folder']}"
    yield from _sensors(found.get("meters", {}))
    thermal = board.get("thermal") or {}
    zones = (thermal.get("temperatures_c") or {}).items()
    heat = [f"{zone} {degrees_c:.0f} °C" for zone, degrees_c in zones if degrees_c is not None]
    if heat:
        yield "heat", ", ".join(heat)
    if thermal.get("slowed_by"):
        yield "slowed by", ", ".join(map(str, thermal["slowed_by"]))


def _software(found: Mapping[str, Any], board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, runtime in found.get("runtimes", {}).items():
        if runtime and runtime.get("version"):
            providers = ", ".join(runtime.get("providers", ()))
            yield "runtime", _listed(f"{name} {runtime['version']}", providers)
    installed = (("CUDA", "cuda"), ("cuDNN", "cudnn"), ("TensorRT", "tensorrt"))
    versions = [f"{title} {board[key]}" for title, key in installed if board.get(key)]
    if versions:
        yield "NVIDIA", ", ".join(versions)


def _clocks(clocks: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in ("cpu", "gpu"):
        for domain in clocks.get(part) or ():
            low, high = domain.get("min_mhz"), domain.get("max_mhz")
            between = f"of {low:.0f} to {high:.0f}" if low is not None and high is not None else ""
            now = domain.get("now_mhz")
            speed = f"{'unknown' if now is None else f'{now:.0f}'} {between} MHz"
            yield "clock", _listed(f"{part} {domain['name']}", speed, domain.get("governor"))
    if clocks.get("emc_mhz") is not None:
        yield "clock", f"memory, {clocks['emc_mhz']:.0f} MHz"
    if not clocks.get("cpu") and here.get("governor"):
        yield "governor", here["governor"]


def _sensors(meters: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, meter in meters.items():
        if "missing" not in meter:
            yield "power", _listed(name, meter.get("scope"))
            total = meter.get("total") or []
            others = [rail for rail in meter.get("rails") or () if rail not in total]
            if total:
                apart = f"; beside it {', '.join(others)}" if others else ""
                yield "", f"total is {' + '.join(total)}{apart}"


def _listed(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part) or "unknown"


def _some(value: object) -> str:
    return "unknown" if value is None else str(value)


def _size(size_bytes: int) -> str:
    return (
        f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
    )
