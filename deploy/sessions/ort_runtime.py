"""What every session on ONNX Runtime does alike: import it, open a file, describe it, run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from deploy.errors import DeviceError, MissingDependency, StorageError
from deploy.sessions.session import Feeds, Port

_DTYPES = {"float": "float32", "double": "float64"}


def import_onnxruntime(path: str | Path) -> Any:
    """The package.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"{path}: running an ONNX file needs onnxruntime, which is not installed; "
            "install it with: pip install onnxruntime"
        ) from error
    return onnxruntime


def sequential_options(
    onnxruntime: Any,
    path: str | Path,
    threads: int,
    settings: Mapping[str, str],
    optimized_model_path: Path | None = None,
) -> Any:
    """Session options: ``threads`` inside an operator, one between operators, all optimizations.

    Raises:
        DeviceError: Fewer than one thread.
    """
    if threads < 1:
        raise DeviceError(f"{path}: threads is {threads}; it must be 1 or more")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors arrive as exceptions
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    if optimized_model_path is not None:
        options.optimized_model_filepath = str(optimized_model_path)
    return options


def open_model(
    onnxruntime: Any,
    path: str | Path,
    options: Any,
    provider: str,
    settings: Mapping[str, str],
    remedy: str = "install a build of onnxruntime that has it",
) -> Any:
    """An ``InferenceSession`` whose first provider is the one that was asked for.

    Raises:
        StorageError: There is no such file.
        DeviceError: This build lacks the provider, the file cannot be loaded, or another provider
            took over, which ONNX Runtime does with nothing but a line in its log.
    """
    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file; give the path of an .onnx file")
    here = f"ONNX Runtime {onnxruntime.__version__}"
    available = list(onnxruntime.get_available_providers())
    if provider not in available:
        raise DeviceError(
            f"{path}: asked for {provider}; {here} here has only {available}; {remedy}"
        )
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(provider, dict(settings))]
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise DeviceError(f"{path}: {here} cannot load it: {one_line(error)}") from error
    if session.get_providers()[:1] != [provider]:
        raise DeviceError(
            f"{path}: asked for {provider} and got {session.get_providers()}; {remedy}, "
            "and the libraries that it needs"
        )
    return session


def refused(name: str, session: Any, feeds: Feeds, error: Exception) -> DeviceError:
    given = {
        key: (tuple(np.shape(a)), str(getattr(a, "dtype", type(a).__name__)))
        for key, a in feeds.items()
    }
    wanted = {port.name: (port.shape, port.dtype) for port in ports(session.get_inputs())}
    return DeviceError(
        f"{name}: ONNX Runtime refused the inputs {given}; the model takes {wanted}: "
        f"{one_line(error)}"
    )


def closed(name: str) -> DeviceError:
    return DeviceError(f"{name}: the session is closed; open a new one")


def ports(described: Sequence[Any]) -> tuple[Port, ...]:
    """ONNX Runtime's descriptions of inputs or outputs as ports."""
    return tuple(_port(each) for each in described)


def _port(described: Any) -> Port:
    kind = str(described.type).replace("tensor(", "").rstrip(")")
    shape = tuple(size if isinstance(size, int) else None for size in described.shape)
    return Port(str(described.name), shape, _DTYPES.get(kind, kind))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
