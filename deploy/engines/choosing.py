"""Which engines of a bundle were built from one of its models, and which of them is for this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Mapping

from deploy.bundle import Bundle
from deploy.engines.driver import Driver, Gpu, find_driver
from deploy.engines.plan_file import side_path
from deploy.errors import DeviceError

SUFFIXES = (".plan", ".engine")


def engine_names(bundle: Bundle) -> list[str]:
    """Names inside the bundle of all its engines."""
    return [name for name in bundle.manifest["files"] if name.endswith(SUFFIXES)]


def engines_of(bundle: Bundle, source: str, runtime: str) -> dict[str, dict[str, Any]]:
    """Side files by engine, of those that ``runtime`` (``tensorrt``, ``rtx``) built from ``source``.

    Raises:
        DeviceError: An engine's side file cannot be read.
    """
    wanted = (bundle.manifest["files"][source]["sha256"], runtime)
    found = {}
    for name in engine_names(bundle):
        about = _side_file(side_path(bundle.folder / name))
        onnx, by = about.get("onnx") or {}, about.get("runtime") or {}
        made = onnx.get("sha256"), by.get("flavour")
        if made == wanted:
            found[name] = about
    return found


def for_this_gpu(
    engines: Mapping[str, Mapping[str, Any]], driver: Callable[[], Driver] = find_driver
) -> str:
    """The engine for this machine's first GPU; without a driver, the first engine.

    The session refuses one that does not fit, in better words than could be found here.
    """
    names = list(engines)
    if len(names) == 1:
        return names[0]
    try:
        gpu = driver().gpu()
    except DeviceError:
        return names[0]
    return min(names, key=lambda name: _distance(engines[name].get("gpu"), gpu))


def _distance(built_for: Mapping[str, Any] | None, gpu: Gpu) -> int:
    """0 for the same GPU, then the same kind, then any GPU, then another one."""
    if built_for is None:
        return 2
    if built_for.get("compute_capability") != gpu.compute_capability:
        return 3
    return 0 if built_for.get("name") == gpu.name else 1


def _side_file(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{path}: cannot be read ({error}); it says what the engine is for, build it again"
        ) from error
    if not isinstance(about, dict):
        return {}
    # Those of another program may lack these; the session asks for the rest.
    keys = ("onnx", "runtime", "gpu")
    wrong = [key for key in keys if not isinstance(about.get(key), (dict, type(None)))]
    if wrong:
        raise DeviceError(
            f"{path}: {', '.join(wrong)} should be an object; it says what the engine is for, "
            "build it again"
        )
    return about
