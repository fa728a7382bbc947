"""ONNX files in ONNX Runtime on an NVIDIA GPU: its CUDA and its TensorRT provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import numpy as np

from deploy.errors import DeviceError
from deploy.sessions.ort_runtime import (
    closed,
    import_onnxruntime,
    one_line,
    open_model,
    ports,
    refused,
    sequential_options,
)
from deploy.sessions.session import Feeds, Port

PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
_REMEDY = "install onnxruntime-gpu, on a Jetson the build that is made for its JetPack"
_GRAPH_SETTING = {"ort-cuda": "enable_cuda_graph", "ort-tensorrt": "trt_cuda_graph_enable"}


class OrtGpuSession:
    """An ONNX file in ONNX Runtime on a GPU, all of it: a node that falls to the CPU is an error.

    ``provider`` is ``"ort-cuda"`` or ``"ort-tensorrt"``; ``provider_settings`` are passed on to it.
    With ``cuda_graph`` the work for each new set of shapes is captured once and replayed from then on.
    ``settings`` records what was set.

    ``run`` is ``load``, ``execute``, ``fetch``: copies from and to the host are part of it.  For a
    latency without copies, ``load`` once and time ``execute``.

    Raises:
        StorageError: There is no such file.
        DeviceError: This build of ONNX Runtime or this machine lacks the provider, a node has no
            kernel there, or the file cannot be loaded.
        MissingDependency: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        provider: str = "ort-cuda",
        *,
        device: int = 0,
        threads: int = 1,
        cuda_graph: bool = False,
        provider_settings: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        if provider not in PROVIDERS:
            raise DeviceError(
                f"{path}: unknown provider {provider!r}; choose from {', '.join(PROVIDERS)}"
            )
        onnxruntime = import_onnxruntime(path)
        if PROVIDERS[provider] in onnxruntime.get_available_providers():
            # CUDA's libraries may come as Python packages, which the loader does not search.
            getattr(onnxruntime, "preload_dlls", lambda: None)()
        on = {"device_id": str(device), **(provider_settings or {})}
        if cuda_graph:
            on[_GRAPH_SETTING[provider]] = "1"
        alone = {"session.disable_cpu_ep_fallback": "1"}
        options = sequential_options(onnxruntime, path, threads, alone)
        session = open_model(onnxruntime, path, options, PROVIDERS[provider], on, _REMEDY)
        self.settings: Mapping[str, str] = {**alone, **on}
        self.threads, self._device, self._graph = threads, device, cuda_graph
        self._onnxruntime: Any = onnxruntime
        self._session: Any = session
        self._binding: Any = None
        self._shapes: dict[str, Any] | None = None
        self._on_gpu: dict[str, Any] = {}
        self._answers: dict[str, Any] = {}
        self._captured = 0
        self._name = Path(path).stem if name is None else name
        self._inputs, self._outputs = ports(session.get_inputs()), ports(session.get_outputs())

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
        """Outputs by name, on the host: ``load``, ``execute``, ``fetch``.

        Raises:
            DeviceError: The feeds do not fit the model, or the session is closed.
        """
        self.load(feeds)
        self.execute()
        return self.fetch()

    def load(self, feeds: Feeds) -> None:
        """Copy inputs to the GPU; memory is reserved when their shapes are new.

        Raises:
            DeviceError: The feeds do not fit the model, or the session is closed.
        """
        if self._session is None:
            raise closed(self._name)
        shapes = {key: np.shape(array) for key, array in feeds.items()}
        try:
            if shapes != self._shapes:
                self._reserve(feeds)
                self._shapes = shapes
            for key, array in feeds.items():
                self._on_gpu[key].update_inplace(np.ascontiguousarray(array))
        except Exception as error:
            self._shapes = None
            raise refused(self._name, self._session, feeds, error) from error

    def execute(self) -> None:
        """Run the model on what was loaded; returns when the GPU is done.

        Raises:
            DeviceError: Nothing was loaded, the session is closed, or the GPU failed.
        """
        if self._session is None:
            raise closed(self._name)
        if self._shapes is None:
            raise DeviceError(f"{self._name}: nothing to execute; load the inputs first")
        try:
            self._session.run_with_iobinding(self._binding, self._options)
            self._binding.synchronize_outputs()
        except Exception as error:
            raise DeviceError(f"{self._name}: the GPU failed: {one_line(error)}") from error

    def fetch(self) -> Feeds:
        """Outputs of the last ``execute``, copied to the host."""
        return {key: answer.numpy() for key, answer in self._answers.items()}

    def _reserve(self, feeds: Feeds) -> None:
        """Memory on the GPU for inputs of these shapes and for what the model answers to them."""
        value, names = self._onnxruntime.OrtValue, [port.name for port in self._outputs]
        # Once without graph or binding: a model's output shapes are known when it has run.
        answers = self._session.run(names, feeds, self._run_options(-1))
        self._on_gpu = {
            key: value.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", self._device)
            for key, array in feeds.items()
        }
        self._answers = {
            key: value.ortvalue_from_shape_and_type(
                list(array.shape), array.dtype, "cuda", self._device
            )
            for key, array in zip(names, answers)
        }
        self._binding = self._session.io_binding()
        for key, given in self._on_gpu.items():
            self._binding.bind_ortvalue_input(key, given)
        for key, answer in self._answers.items():
            self._binding.bind_ortvalue_output(key, answer)
        self._captured += 1
        self._options = self._run_options(self._captured)

    def close(self) -> None:
        """Give the model's memory back; ``run`` is an error from here on."""
        self._session = self._binding = None
        self._on_gpu, self._answers, self._shapes = {}, {}, None

    def _run_options(self, graph: int) -> Any:
        options = self._onnxruntime.RunOptions()
        if self._graph:
            # Graphs are captured and replayed by number; -1 does neither.
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options
