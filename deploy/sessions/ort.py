"""ONNX files in ONNX Runtime on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

from deploy.cpu import Cpu, read_cpu
from deploy.errors import DeviceError
from deploy.sessions.ort_runtime import (
    closed,
    import_onnxruntime,
    open_model,
    ports,
    refused,
    sequential_options,
)
from deploy.sessions.session import Feeds, Port


class OrtCpuSession:
    """An ONNX file in ONNX Runtime on the processor.

    Sequential execution, ``threads`` threads inside an operator and one between operators, whatever
    the machine has: a latency without its thread count means nothing.  ``affinity`` is a processor
    for each thread, counted from 0; the first is that of the caller, who pins itself (see
    ``deploy.sessions.affinity``).  ``disable_fusion`` keeps every Q/DQ pair a pair of float
    operations: the simulated reference for the integer kernels.  ``optimized_model_path`` is where
    ONNX Runtime writes the graph that it really executes.

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
        affinity: Sequence[int] = (),
        disable_fusion: bool = False,
        optimized_model_path: Path | None = None,
        name: str | None = None,
        cpu: Cpu | None = None,
    ) -> None:
        onnxruntime = import_onnxruntime(path)
        if affinity and len(affinity) != threads:
            raise DeviceError(
                f"{path}: affinity names {len(affinity)} processors and threads is {threads}; "
                "give a processor for each thread"
            )
        self.settings: Mapping[str, str] = _settings(
            spin, affinity, disable_fusion, cpu or read_cpu()
        )
        self.threads = threads
        options = sequential_options(
            onnxruntime, path, threads, self.settings, optimized_model_path
        )
        session = open_model(onnxruntime, path, options, "CPUExecutionProvider", {})
        self._session = session
        self._name = Path(path).stem if name is None else name
        self._inputs, self._outputs = ports(session.get_inputs()), ports(session.get_outputs())
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
            raise closed(self._name)
        try:
            return dict(zip(self._output_names, self._session.run(self._output_names, feeds)))
        except Exception as error:
            raise refused(self._name, self._session, feeds, error) from error

    def close(self) -> None:
        """Give the model's memory back; ``run`` is an error from here on."""
        self._session = None


def _settings(
    spin: bool, affinity: Sequence[int], disable_fusion: bool, cpu: Cpu
) -> dict[str, str]:
    settings = {"session.intra_op.allow_spinning": "1" if spin else "0"}
    if len(affinity) > 1:  # of the threads that ONNX Runtime starts; it counts processors from 1
        settings["session.intra_op_thread_affinities"] = ";".join(
            str(processor + 1) for processor in affinity[1:]
        )
    if disable_fusion:
        settings["session.disable_quant_qdq"] = "1"
    elif cpu.saturates_u8s8:
        settings["session.x64quantprecision"] = "1"
    return settings
