"""NVIDIA's Python bindings, and the one place that knows how their versions differ.

``tensorrt`` (8.6, 10.x, 11.x) and ``tensorrt_rtx`` are one API with pieces missing.  What a version
can do is asked of its attributes; version numbers are only reported.  What changed, introspected
in the binding wheels 8.6.1, 10.3.0, 10.11.0, 10.12.0, 10.13.3, 10.16.1, 11.4.0 and tensorrt-rtx 1.7.1:

* precision flags (``BuilderFlag.INT8``, ``FP16``) and ``EXPLICIT_BATCH`` are gone in 11 and RTX,
  whose networks are always strongly typed: precision is what the ONNX graph says
* strong typing in 10.x is a flag; NVIDIA calls it complete from 10.12, which is where
  ``BuilderFlag.DISTRIBUTIVE_INDEPENDENCE`` appeared
* ``HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY``, ``IRuntimeConfig``: after 10.3
* a parser's error names its node after 8.6, which only numbers it
* progress monitors: after 8.6
* ``device_memory_size`` lost its place to ``device_memory_size_v2``, which exists since 10.3
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Callable, Iterator

from deploy.errors import ConfigError, DeviceError, MissingDependency

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_ADVICE = {
    "tensorrt": "on a Jetson: sudo apt install python3-libnvinfer, elsewhere: "
    "pip install 'compress-deploy[tensorrt]'",
    "rtx": "install it with: pip install 'compress-deploy[rtx]'",
}


@dataclass(frozen=True)
class Bindings:
    """The bindings that were found.  ``flavour`` is ``tensorrt`` or ``rtx``."""

    trt: Any
    flavour: str

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        return f"{MODULES[self.flavour]} {self.version}"

    @property
    def times_kernels(self) -> bool:
        """TensorRT chooses kernels by timing them on the GPU; RTX builds without one."""
        return not hasattr(self.trt, "ComputeCapability")

    @property
    def has_precision_flags(self) -> bool:
        return hasattr(self.trt.BuilderFlag, "INT8")

    @property
    def types_strongly(self) -> bool:
        """Whether strong typing is the right route: there is no other, or it is complete."""
        return not self.has_precision_flags or hasattr(
            self.trt.BuilderFlag, "DISTRIBUTIVE_INDEPENDENCE"
        )

    def network_flags(self, strongly_typed: bool) -> int:
        """Bits for ``Builder.create_network``; their values moved between versions."""
        members = self.trt.NetworkDefinitionCreationFlag.__members__
        if strongly_typed and "STRONGLY_TYPED" not in members:
            raise DeviceError(
                f"{self.title}: has no strong typing; ask for typing 'weak', or use TensorRT 10"
            )
        names = ["EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if strongly_typed else [])]
        return sum(1 << int(members[name]) for name in names if name in members)

    def member(self, enumeration: str, name: str, setting: str) -> Any:
        """A member of an enumeration, or a refusal: a setting is never dropped silently.

        Raises:
            ConfigError: This version does not have it.
        """
        members = getattr(getattr(self.trt, enumeration, None), "__members__", {})
        if name not in members:
            raise ConfigError(
                f"build: {setting} needs {enumeration}.{name}, which {self.title} does not have; "
                f"it has {sorted(members)}, leave the setting out or use a version that has it"
            )
        return members[name]

    def set_attribute(self, target: Any, name: str, value: Any, setting: str) -> None:
        """Set what only some versions have.

        Raises:
            ConfigError: This version does not have it.
        """
        if not hasattr(target, name):
            raise ConfigError(
                f"build: {setting} needs {type(target).__name__}.{name}, which {self.title} does "
                "not have; leave the setting out or use a version that has it"
            )
        setattr(target, name, value)

    @property
    def reports_progress(self) -> bool:
        return hasattr(self.trt, "IProgressMonitor")

    def make_builder(self, logger: Any, said: Callable[[], str]) -> Any:
        """A ``Builder``; ``said`` gives what the logger heard.

        Raises:
            DeviceError: The libraries cannot make one on this machine.
        """
        try:
            return self.trt.Builder(logger)
        except TypeError as error:  # pybind11's word for a factory that returned nothing
            raise DeviceError(
                f"{self.title}: cannot make a builder on this machine ({said()}); check that its "
                "libraries, the driver and CUDA fit together"
            ) from error

    def errors_of(self, parser: Any) -> Iterator[Any]:
        for index in range(parser.num_errors):
            yield parser.get_error(index)

    def node_of(self, error: Any) -> tuple[Callable[[], str], Callable[[], str]]:
        """What gives the operator and the name of the node that a parser's error is about."""
        if hasattr(error, "node_name"):
            return error.node_operator, error.node_name
        return str, lambda: f"number {error.node()}" if error.node() >= 0 else ""

    def device_memory_bytes(self, engine: Any) -> int:
        """Device memory that a context of the engine takes, weights excluded."""
        return int(
            engine.device_memory_size_v2
            if hasattr(engine, "device_memory_size_v2")
            else engine.device_memory_size
        )


def find_bindings(runtime: str | None = None) -> Bindings:
    """The bindings asked for, else TensorRT's, else TensorRT-RTX's.

    Call it in a worker only: importing them loads native code.

    Raises:
        ConfigError: ``runtime`` names neither.
        MissingDependency: None can be imported; says what importing it said.
    """
    if runtime is not None and runtime not in MODULES:
        raise ConfigError(f"runtime: unknown {runtime!r}; choose from {sorted(MODULES)}")
    refusals = []
    for flavour in [runtime] if runtime else MODULES:
        try:
            module = importlib.import_module(MODULES[flavour])
        except (ImportError, OSError) as error:  # a missing shared library is either
            refusals.append(f"{MODULES[flavour]} ({_one_line(error)})")
            continue
        if hasattr(module, "Builder"):
            return Bindings(module, flavour)
        refusals.append(f"{MODULES[flavour]} (has no Builder)")
    raise MissingDependency(
        f"TensorRT: cannot import {' or '.join(refusals)}; "
        + "; ".join(_ADVICE[flavour] for flavour in ([runtime] if runtime else MODULES))
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
