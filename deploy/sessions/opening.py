"""Open a model of a bundle in the runtime that was asked for.

    provider       runs                                   the student's own target
    ort-cpu        ONNX Runtime on the processor          ort-cpu
    ort-cuda       ONNX Runtime's CUDA provider           tensorrt
    ort-tensorrt   ONNX Runtime's TensorRT provider       tensorrt
    tensorrt       an engine that TensorRT built          tensorrt
    tensorrt-rtx   an engine that TensorRT-RTX built      tensorrt

The teacher is the float original, ``teacher.onnx``, or an engine of it.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Any, Callable, Mapping, Protocol, Sequence, runtime_checkable

from deploy.bundle import Bundle
from deploy.engines.choosing import engine_names, engines_of, for_this_gpu
from deploy.errors import ConfigError, DataError
from deploy.sessions.ort import OrtCpuSession
from deploy.sessions.ort_gpu import OrtGpuSession
from deploy.sessions.session import Feeds, Session

TEACHER, STUDENT = "teacher", "student"
TEACHER_FILE = "teacher.onnx"
TARGETS = {
    "ort-cpu": "ort-cpu",
    "ort-cuda": "tensorrt",
    "ort-tensorrt": "tensorrt",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt",
}
_FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_PACKAGES = {
    "ort-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "ort-cuda": ("onnxruntime-gpu", "onnxruntime"),
    "ort-tensorrt": ("onnxruntime-gpu", "onnxruntime", "tensorrt"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


@runtime_checkable
class Resident(Protocol):
    """A session on a GPU, where inputs and outputs can stay between calls."""

    def load(self, feeds: Feeds) -> Any: ...

    def execute(self) -> Any: ...


@runtime_checkable
class LayerTimed(Protocol):
    """A session that knows how long each of its layers takes, in microseconds by name."""

    def layer_times_us(self, feeds: Feeds) -> dict[str, float]: ...


def model_file(bundle: Bundle, model: str, provider: str, target: str | None = None) -> str:
    """The name inside the bundle of the file that ``open_session`` would load.

    Raises:
        ConfigError: The model or the provider does not exist.
        DataError: The bundle has no such model; says which it has.
    """
    if model not in (TEACHER, STUDENT):
        raise ConfigError(f"model: unknown {model!r}; choose from {TEACHER}, {STUDENT}")
    if provider not in TARGETS:
        raise ConfigError(f"provider: unknown {provider!r}; choose from {', '.join(TARGETS)}")
    if provider in _FLAVOURS:
        return _engine_file(bundle, model, provider, target)
    if model == TEACHER:
        if TEACHER_FILE not in bundle.manifest["files"]:
            raise DataError(f"{bundle.folder}: no {TEACHER_FILE}; ask for the student alone")
        return TEACHER_FILE
    path = bundle.model_path(target or TARGETS[provider])
    return path.relative_to(bundle.folder).as_posix()


def open_session(
    bundle: Bundle,
    model: str,
    *,
    provider: str = "ort-cpu",
    target: str | None = None,
    threads: int = 1,
    affinity: Sequence[int] = (),
    spin: bool = True,
    cuda_graph: bool = False,
) -> Session:
    """``"teacher"`` or ``"student"`` of a bundle, loaded.

    Raises:
        ConfigError: A setting does not exist, or does not go with the provider.
        DataError: The bundle has no such model.
        DeviceError: The runtime cannot load it, or not where it was asked to.
        MissingDependency: The runtime is not installed.
    """
    path = bundle.folder / model_file(bundle, model, provider, target)
    if provider == "ort-cpu":
        if cuda_graph:
            raise ConfigError("cuda_graph: ort-cpu has none; leave it out or choose a GPU provider")
        return OrtCpuSession(path, threads, spin=spin, affinity=affinity, name=model)
    if affinity or threads != 1:
        raise ConfigError(
            f"threads, affinity: {provider} computes on the GPU; leave them out or take ort-cpu"
        )
    if provider in _FLAVOURS:
        from deploy.sessions.engine import EngineSession

        return EngineSession(path, name=model, cuda_graph=cuda_graph)
    return OrtGpuSession(
        path,
        provider,
        cuda_graph=cuda_graph,
        provider_settings=_provider_settings(provider, model, target or TARGETS[provider]),
        name=model,
    )


def bound_call(session: Session, feeds: Feeds, *, copies: bool = True) -> Callable[[], Any]:
    """What a benchmark times: the session on ``feeds``, ready to be called again and again.

    Without ``copies`` the inputs lie on the device already and the outputs stay there.

    Raises:
        ConfigError: The session has nothing to copy to.
    """
    if copies:
        return functools.partial(session.run, feeds)
    if not isinstance(session, Resident):
        raise ConfigError(
            f"{session.name}: runs on the host, where nothing is copied; leave --no-copies out"
        )
    session.load(feeds)
    return session.execute


def runtime_versions(provider: str) -> dict[str, str]:
    """Versions of the installed packages that ``provider`` runs on."""
    found = {}
    for package in _PACKAGES[provider]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _provider_settings(provider: str, model: str, target: str) -> Mapping[str, str]:
    """What TensorRT before version 11 has to be allowed to do; later it follows the graph."""
    if provider != "ort-tensorrt" or model == TEACHER:
        return {}
    half = {"trt_fp16_enable": "1"} if target.endswith("fp16") else {}
    return {"trt_int8_enable": "1", **half}


def _engine_file(bundle: Bundle, model: str, provider: str, target: str | None) -> str:
    """The engine that this runtime built from this model's file; of several, that for this GPU."""
    source = TEACHER_FILE if model == TEACHER else None
    if source is None:
        source = (
            bundle.model_path(target or TARGETS[provider]).relative_to(bundle.folder).as_posix()
        )
    if source not in bundle.manifest["files"]:
        raise DataError(f"{bundle.folder}: no {source}; ask for the student alone")
    engines = engines_of(bundle, source, _FLAVOURS[provider])
    named = TEACHER if model == TEACHER else target or TARGETS[provider]
    if not engines:
        raise DataError(
            f"{bundle.folder}: no engine of {source} for {provider}; this bundle has "
            f"{', '.join(engine_names(bundle)) or 'none at all'}; "
            f"build it with: compress-deploy build --target {named}"
        )
    return for_this_gpu(engines)
