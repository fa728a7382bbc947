"""From an ONNX file to a TensorRT engine on the machine where it will run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping

from deploy.engines.bindings import MODULES
from deploy.engines.importer import readable
from deploy.engines.layers import Layer
from deploy.engines.plan_file import FORMAT, FORMAT_VERSION, side_path
from deploy.engines.precision import PrecisionSummary, require_precision, summarize
from deploy.engines.settings import BuildSettings
from deploy.engines.worker import Answer, Progress, Worker, WorkerDied
from deploy.errors import DeviceError, StorageError
from deploy.manifest import sha256_of


@dataclass(frozen=True)
class BuiltEngine:
    """A plan on disk, its side file, and what is in it.

    ``loaded`` says whether the plan was deserialised on this machine after it was built; where it
    was not (no GPU), the layers are the builder's own description.
    """

    plan: Path
    side: Path
    about: Mapping[str, Any]
    precision: PrecisionSummary
    layers: tuple[Layer, ...]
    loaded: bool

    @property
    def runtime(self) -> str:
        built = self.about["runtime"]
        return f"{MODULES[built['flavour']]} {built['version']}"


def build_engine(
    onnx: Path,
    out: Path,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build ``onnx`` into the plan ``out`` and its side file ``out.json``.

    Both appear whole or not at all; what was there stays until then.  NVIDIA's builder runs in a
    child process, ``progress(phase, fraction)`` is called while it works.

    Raises:
        ConfigError: A setting is not for this model, version or machine.
        MissingDependency: The runtime is not installed.
        DeviceError: No driver where one is needed, out of memory, or the builder failed.
        VerificationError: The importer refuses the graph, or the precision that was asked for is not there.
        StorageError: A file cannot be read or written.
    """
    settings = settings or BuildSettings()
    source, out = readable(onnx), Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=str(out.parent), prefix=f".{out.name}."))
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        plan = scratch / "plan"
        answer = _built(source, plan, settings, progress, {"name": str(onnx), "out": str(out)})
        layers = tuple(Layer.from_dict(layer) for layer in answer["layers"])
        precision = summarize(layers, answer["source"])
        if settings.precision != "float32":  # which is what there is without asking
            require_precision(precision, str(onnx), settings.precision)
        about = _about(source, plan, settings, answer, precision)
        side = scratch / "side"
        side.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        plan.replace(out)
        side.replace(side_path(out))
    except OSError as error:
        if isinstance(error, (DeviceError, StorageError)):
            raise
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(str(scratch), ignore_errors=True)
    loaded = answer["source"] == "engine inspector"
    return BuiltEngine(out, side_path(out), about, precision, layers, loaded)


def _built(
    source: Path,
    plan: Path,
    settings: BuildSettings,
    progress: Progress | None,
    names: Mapping[str, str],
) -> Answer:
    request = {
        "onnx": str(source),
        "plan": str(plan),
        "settings": settings.to_dict(),
        "cache_folder": str(cache_folder()),
        **names,
    }
    worker = Worker()  # its own: what a build took of the GPU is given back with the process
    try:
        return worker.ask("build", request, progress)
    except WorkerDied as death:
        limit = settings.workspace_mb
        workspace = "no limit on the workspace" if limit is None else f"a workspace of {limit} MB"
        raise DeviceError(
            f"{names['name']}: {death} while building with {workspace}; if memory ran out lower "
            "--workspace-mb or --max-batch, else check the model with compress-deploy lint"
        ) from death
    finally:
        worker.close()


def _about(
    source: Path, plan: Path, settings: BuildSettings, answer: Answer, precision: PrecisionSummary
) -> dict[str, Any]:
    driver = answer["driver"]
    gpus = driver["gpus"] if driver else []
    portable_gpus = settings.hardware_compatible
    if answer["runtime"] == "rtx":
        portable_gpus = "any"  # RTX compiles on the device; the runtime says what it cannot
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "plan": {"sha256": sha256_of(plan), "size_bytes": answer["size_bytes"]},
        "onnx": {"file": source.name, "sha256": sha256_of(source)},
        "runtime": {"flavour": answer["runtime"], "version": answer["version"]},
        "platform": {"system": platform.system(), "machine": platform.machine()},
        "gpu": gpus[0] if gpus else None,
        "driver": {"cuda": driver["cuda"]} if driver else None,
        "portable": {"versions": settings.version_compatible, "gpus": portable_gpus},
        "typing": answer["typing"],
        "settings": settings.to_dict(),
        "inputs": answer["inputs"],
        "outputs": answer["outputs"],
        "profiles": answer["profiles"],
        "timing_cache": answer["timing_cache"],
        "build_s": round(answer["build_s"], 3),
        "warnings": answer["warnings"],
        "precision": precision.to_dict(),
        "layers": answer["layers"],
    }


def cache_folder() -> Path:
    """Where timing caches are kept between builds: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "compress-deploy"


def _cannot_write(out: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{out}: the engine cannot be written ({error.strerror}: {error.filename or out}); "
        "nothing was left behind, free some space or choose another folder"
    )
