"""TensorRT engines.  The bindings are imported inside the class, CUDA is reached by ctypes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from deploy.engines.bindings import Bindings, find_bindings
from deploy.engines.buffers import Buffers
from deploy.engines.cuda import Cuda, CudaDriver
from deploy.engines.driver import Driver, find_driver
from deploy.engines.layers import Layer
from deploy.engines.loading import inspected, load_engine
from deploy.engines.messages import listening
from deploy.engines.plan_file import open_plan
from deploy.engines.precision import PrecisionSummary, summarize
from deploy.engines.profiles import Shapes, batch_for, choose_profile
from deploy.errors import DeviceError
from deploy.sessions.session import Feeds, Port

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class EngineSession:
    """A plan that ``compress-deploy build`` wrote, on the GPU that it was built for.

    The side file is compared with this machine before anything is deserialised.  ``cuda_graph``
    captures the engine's work after the first call with a shape and replays it from then on; a new
    shape is captured again.  Where the plan has several optimisation profiles, the one whose
    optimum is nearest to the given batch is used.

    ``run`` is ``load``, ``execute``, ``fetch``: copies from and to the host are part of it
    (``copies_included``).  For a latency without copies, ``load`` once and time ``execute``, which
    returns when the device is done.  ``driver``, ``bindings`` and ``cuda`` are found on this
    machine where they are not given.

    Raises:
        StorageError: The plan or its side file is missing or was changed.
        DeviceError: No driver, a plan for another GPU, version or platform, or memory ran out.
        MissingDependency: The bindings are not installed.
    """

    copies_included = True

    def __init__(
        self,
        plan: str | Path,
        *,
        device: int = 0,
        cuda_graph: bool = False,
        name: str | None = None,
        driver: Driver | None = None,
        bindings: Bindings | None = None,
        cuda: Cuda | None = None,
    ) -> None:
        opened = open_plan(plan)
        opened.require_platform()
        gpu = (driver or find_driver()).gpu(device)
        self._bindings = bindings or find_bindings(opened.runtime)
        opened.require_fit(self._bindings.flavour, self._bindings.version, gpu)
        self.plan, self.gpu, self.cuda_graph = opened, gpu, cuda_graph
        self._name = Path(plan).stem if name is None else name
        self._cuda = cuda or CudaDriver(device)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream = self._graph = 0
        self._shapes: Shapes = {}
        self._warm = False
        self._profile = 0
        self._buffers = Buffers(self._cuda, self._name)
        try:
            self._stream = self._cuda.create_stream()
            self._load_engine(Path(plan).read_bytes())
            self._inputs, self._outputs = self._ports()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._outputs

    @property
    def runtime(self) -> str:
        """The bindings' name and version."""
        return self._bindings.title

    @property
    def memory_bytes(self) -> int:
        """Device memory of inputs, outputs and the engine's scratch space, weights excluded."""
        return self._buffers.size_bytes + self._bindings.device_memory_bytes(self._engine)

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs by name, on the host.

        Raises:
            DeviceError: The feeds do not fit the engine, the device failed, or the session is
                closed.
        """
        self.load(feeds)
        self.execute()
        return self.fetch()

    def batch_for(self, rows: int) -> int:
        """The largest batch that the plan takes and that is not above ``rows``, or its least."""
        self._open()
        return batch_for(self._engine, self._inputs[0], rows)

    def bind(self, feeds: Feeds, *, copies: bool = True) -> Callable[[], Any]:
        """A call on these feeds.  Without ``copies`` they are loaded now, and outputs stay there."""
        if copies:
            return functools.partial(self.run, feeds)
        self.load(feeds)
        return self.execute

    def load(self, feeds: Feeds) -> None:
        """Copy inputs to the device, and get ready for their shapes."""
        self._open()
        self._check(feeds)
        shapes = {name: tuple(value.shape) for name, value in feeds.items()}
        if shapes != self._shapes:
            self._take(shapes)
        for name, value in feeds.items():
            self._buffers.send(name, value, self._stream)
        self._cuda.synchronize(self._stream)

    def execute(self) -> None:
        """Run the engine on what was loaded, and wait for it."""
        self._open()
        if not self._shapes:
            raise DeviceError(f"{self._name}: nothing is loaded; call load with the inputs first")
        if self.cuda_graph and self._warm:
            if not self._graph:
                self._capture()
            self._cuda.launch_graph(self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        self._warm = True

    def fetch(self) -> Feeds:
        """Copy the outputs of the last ``execute`` to the host."""
        self._open()
        if not self._warm:
            raise DeviceError(f"{self._name}: nothing was computed; call execute first")
        for port in self._outputs:
            self._buffers.start_fetch(port.name, self._stream)
        self._cuda.synchronize(self._stream)
        return {port.name: self._buffers.fetched(port.name) for port in self._outputs}

    def device_ms(self) -> float:
        """Time of one more execution on the device alone, between two events."""
        self._open()
        self.execute()
        if self.cuda_graph:
            self.execute()  # the first replay of a shape captures, which is no work of the device
            return self._cuda.elapsed_ms(
                lambda: self._cuda.launch_graph(self._graph, self._stream), self._stream
            )
        return self._cuda.elapsed_ms(self._enqueue, self._stream)

    def layer_times_us(self, feeds: Feeds, calls: int = 20) -> dict[str, float]:
        """Mean time per layer, measured apart: profiling takes overlap away, and graphs.

        Raises:
            DeviceError: As ``run``, or TensorRT reported nothing.
        """
        self.load(feeds)
        self._enqueue()
        self._cuda.synchronize(self._stream)
        totals: dict[str, float] = {}
        base = self._bindings.trt.IProfiler

        class Times(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                totals[layer_name] = totals.get(layer_name, 0.0) + ms

        self._context.profiler = Times()
        for _ in range(calls):
            self._enqueue()
            self._cuda.synchronize(self._stream)
        # A profiler cannot be taken off a context: a new one does without.
        self._forget_graph()
        self._shapes, self._warm, self._profile = {}, False, 0
        self._context = None  # first: two would need the scratch space twice
        self._context = self._new_context()
        if not totals:
            raise DeviceError(
                f"{self._name}: {self.runtime} reported no layer times; the plan was built "
                "without them"
            )
        return {name: 1000 * total / calls for name, total in totals.items()}

    def layers(self) -> list[Layer]:
        """What the engine inspector says of the layers."""
        self._open()
        return inspected(self._bindings, self._engine)

    def precision(self, feeds: Feeds | None = None) -> PrecisionSummary:
        """Layers per type, and with feeds the time that they take."""
        times_us = None if feeds is None else self.layer_times_us(feeds)
        return summarize(self.layers(), "engine inspector", times_us)

    def close(self) -> None:
        """Give the device's memory back; everything else is an error from here on."""
        if self._stream:
            self._cuda.make_current()
            self._forget_graph()
            self._buffers.close()
            self._cuda.destroy_stream(self._stream)
            self._stream = 0
        self._context = self._engine = self._runtime = None
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None  # type: ignore[assignment]

    def _open(self) -> None:
        if self._context is None:
            raise DeviceError(f"{self._name}: the session is closed; open a new one")
        self._cuda.make_current()

    def _load_engine(self, plan: bytes) -> None:
        version_compatible = bool(self.plan.about["portable"]["versions"])
        try:
            self._runtime, self._engine = load_engine(
                self._bindings, plan, version_compatible=version_compatible
            )
        except DeviceError as error:
            raise DeviceError(
                f"{self._name}: on {self.gpu.name}: {error}; build it again on this machine"
            ) from error
        self._context = self._new_context()

    def _new_context(self) -> Any:
        with listening() as messages:
            context = self._engine.create_execution_context()
            if context is None:
                needed = self._bindings.device_memory_bytes(self._engine)
                raise DeviceError(
                    f"{self._name}: no memory for the engine's {needed} bytes of scratch space "
                    f"({messages.first_error[:300]}); close what else uses the GPU's memory, or "
                    "build with a lower --max-batch or --workspace-mb"
                )
        return context

    def _ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        engine, trt = self._engine, self._bindings.trt
        inputs: list[Port] = []
        outputs: list[Port] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
            if kind not in _DTYPES or on_host:
                what = "in host memory" if on_host else f"of type {kind}"
                raise DeviceError(
                    f"{self._name}: tensor {name!r} is {what}; sessions take tensors in device "
                    f"memory of {sorted(_DTYPES)}, export the model with those"
                )
            shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(Port(name, shape, _DTYPES[kind]))
        return tuple(inputs), tuple(outputs)

    def _check(self, feeds: Feeds) -> None:
        wanted = {port.name: port for port in self._inputs}
        fits = set(feeds) == set(wanted) and all(
            isinstance(value, np.ndarray)
            and value.dtype == np.dtype(wanted[name].dtype)
            and _matches(value.shape, wanted[name].shape)
            for name, value in feeds.items()
        )
        if not fits:
            given = {
                key: (tuple(np.shape(a)), str(getattr(a, "dtype", type(a).__name__)))
                for key, a in feeds.items()
            }
            takes = {port.name: (port.shape, port.dtype) for port in self._inputs}
            raise DeviceError(f"{self._name}: the model takes {takes} and was given {given}")

    def _take(self, shapes: Shapes) -> None:
        """Choose the profile, tell the context the shapes, and give every tensor an address."""
        self._forget_graph()
        self._shapes, self._warm = {}, False
        context = self._context
        profile = choose_profile(self._engine, shapes, self._name)
        if profile != self._profile:
            if not context.set_optimization_profile_async(profile, self._stream):
                raise DeviceError(f"{self._name}: profile {profile} cannot be chosen")
            self._cuda.synchronize(self._stream)
            self._profile = profile
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise DeviceError(f"{self._name}: input {name!r} may not have shape {shape}")
        unknown = context.infer_shapes()
        if unknown:
            raise DeviceError(
                f"{self._name}: shapes of {list(unknown)} do not follow from the inputs'; export "
                "the model so that they do"
            )
        sizes = dict(shapes)
        for port in self._outputs:
            sizes[port.name] = tuple(int(size) for size in context.get_tensor_shape(port.name))
            if min(sizes[port.name], default=0) < 0:
                raise DeviceError(
                    f"{self._name}: output {port.name!r} has a size that depends on the data; "
                    "sessions take engines whose output shapes follow from the inputs'"
                )
        for port in (*self._inputs, *self._outputs):
            address = self._buffers.fit(port, sizes[port.name])
            if not context.set_tensor_address(port.name, address):
                raise DeviceError(f"{self._name}: the address of {port.name!r} was refused")
        self._shapes = shapes

    def _enqueue(self) -> None:
        with listening() as messages:
            if not self._context.execute_async_v3(self._stream):
                raise DeviceError(
                    f"{self._name}: the engine did not start: {messages.first_error[:300]}"
                )

    def _capture(self) -> None:
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
        except DeviceError as error:
            self._abandon_capture()
            raise self._uncapturable(error) from error
        try:
            self._graph = self._cuda.end_capture(self._stream)
        except DeviceError as error:
            raise self._uncapturable(error) from error

    def _abandon_capture(self) -> None:
        # The stream is unusable until its capture is ended, and ending a broken one fails too.
        try:
            self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
        except DeviceError:
            return

    def _uncapturable(self, error: DeviceError) -> DeviceError:
        return DeviceError(
            f"{self._name}: the engine's work cannot be captured in a CUDA graph ({error}); open "
            "the session with cuda_graph=False"
        )

    def _forget_graph(self) -> None:
        if self._graph:
            self._cuda.destroy_graph(self._graph)
            self._graph = 0


def _matches(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size >= 0 if free is None else size == free for size, free in zip(shape, wanted)
    )
