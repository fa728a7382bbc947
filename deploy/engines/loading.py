"""A plan's bytes to an engine, and what its inspector says of it."""

from __future__ import annotations

from typing import Any

from deploy.engines.bindings import Bindings
from deploy.engines.layers import Layer, layers_from_json
from deploy.engines.messages import listening, logger_of
from deploy.engines.profiles import range_of
from deploy.errors import DeviceError


def load_engine(bindings: Bindings, plan: bytes, *, version_compatible: bool) -> tuple[Any, Any]:
    """The runtime, which must outlive the engine, and the engine.

    A version-compatible plan brings code of its own TensorRT along; it runs only where allowed.

    Raises:
        DeviceError: This machine cannot load it.
    """
    with listening() as messages:
        runtime = bindings.trt.Runtime(logger_of(bindings))
        if version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DeviceError(
                f"{bindings.title} cannot load the plan on this machine: "
                f"{messages.first_error[:300]}"
            )
    return runtime, engine


def inspected(bindings: Bindings, engine: Any) -> list[Layer]:
    """The layers, at the best shapes of the first profile: some facts need shapes.

    Raises:
        DeviceError: The inspector's answer is not understood, or is names alone.
    """
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:
        modes, names = bindings.trt.TensorIOMode, map(engine.get_tensor_name, _io(engine))
        inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        for name, shape in range_of(engine, 0, inputs)[1].items():
            context.set_input_shape(name, shape)
        inspector.execution_context = context
    form = bindings.trt.LayerInformationFormat.JSON
    return layers_from_json(inspector.get_engine_information(form))


def _io(engine: Any) -> range:
    return range(engine.num_io_tensors)
