"""ONNX files in ONNX Runtime, which is imported inside the class that owns it."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np

from deploy.cpu import Cpu, read_cpu
from deploy.errors import DeviceError, MissingDependency, StorageError
from deploy.sessions.session import Feeds, Port

_CPU_PROVIDER = "CPUExecutionProvider"


class OrtCpuSession:
    """An ONNX file in ONNX Runtime on the processor.

    Sequential execution, ``threads`` threads inside an operator and one between operators, whatever
    the machine has: a latency without its thread count means nothing.  ``disable_fusion`` keeps
    every Q/DQ pair a pair of float operations: the simulated reference for the integer kernels.
    ``optimized_model_path`` is where ONNX Runtime writes the graph that it really executes.

    ``settings`` records what was set.  On x86-64 without VNNI it holds
    ``session.x64quantprecision``: uint8 x int8 would saturate silently there.

    Raises:
        StorageError: There is no such file.
        DeviceError: The file cannot be loaded, or another provider than the asked one took over.
        MissingDependency: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 1,
        *,
        spin: bool = True,
        disable_fusion: bool = False,
        optimized_model_path: Path | None = None,
        name: str | None = None,
        cpu: Cpu | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependency(
                f"{path}: running an ONNX file needs onnxruntime, which is not installed; "
                "install it with: pip install onnxruntime"
            ) from error
        if threads < 1:
            raise DeviceError(f"{path}: threads is {threads}; it must be 1 or more")
        if not Path(path).is_file():
            raise StorageError(f"{path}: no such file; give the path of an .onnx file")
        self.settings: Mapping[str, str] = _settings(spin, disable_fusion, cpu or read_cpu())
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors arrive as exceptions
        for key, value in self.settings.items():
            options.add_session_config_entry(key, value)
        if optimized_model_path is not None:
            options.optimized_model_filepath = str(optimized_model_path)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=[_CPU_PROVIDER])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DeviceError(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {_one_line(error)}"
            ) from error
        if session.get_providers() != [_CPU_PROVIDER]:
            raise DeviceError(
                f"{path}: asked for {_CPU_PROVIDER} and got {session.get_providers()}; "
                "install a build of onnxruntime that has it"
            )
        self._session = session
        self._name = Path(path).stem if name is None else name
        self._inputs = tuple(_port(port) for port in session.get_inputs())
        self._outputs = tuple(_port(port) for port in session.get_outputs())
        self._output_names = [port.name for port in self._outputs]

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._outputs

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs by name.

        Raises:
            DeviceError: The feeds do not fit the model, or the session is closed.
        """
        if self._session is None:
            raise DeviceError(f"{self._name}: the session is closed; open a new one")
        try:
            return dict(zip(self._output_names, self._session.run(self._output_names, feeds)))
        except Exception as error:
            given = {
                key: (tuple(np.shape(a)), str(getattr(a, "dtype", type(a).__name__)))
                for key, a in feeds.items()
            }
            wanted = {port.name: (port.shape, port.dtype) for port in self._inputs}
            raise DeviceError(
                f"{self._name}: ONNX Runtime refused the inputs {given}; the model takes {wanted}: "
                f"{_one_line(error)}"
            ) from error

    def close(self) -> None:
        """Give the model's memory back; ``run`` is an error from here on."""
        self._session = None


def _settings(spin: bool, disable_fusion: bool, cpu: Cpu) -> dict[str, str]:
    settings = {"session.intra_op.allow_spinning": "1" if spin else "0"}
    if disable_fusion:
        settings["session.disable_quant_qdq"] = "1"
    elif cpu.saturates_u8s8:
        settings["session.x64quantprecision"] = "1"
    return settings


_DTYPES = {"float": "float32", "double": "float64"}


def _port(port: object) -> Port:
    kind = str(getattr(port, "type", "")).replace("tensor(", "").rstrip(")")
    shape = tuple(size if isinstance(size, int) else None for size in getattr(port, "shape", ()))
    return Port(str(getattr(port, "name", "")), shape, _DTYPES.get(kind, kind))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
