"""What an engine is built with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Mapping

from deploy.engines.bindings import MODULES
from deploy.errors import ConfigError

PRECISIONS = ("int8", "float16", "float32")
TYPINGS = ("auto", "strong", "weak")
VERBOSITIES = ("detailed", "layer_names_only", "none")
HARDWARE = ("ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class Batches:
    """An optimisation profile of the dynamic batch; kernels are chosen for ``opt``.

    Raises:
        ConfigError: Not 1 <= min <= opt <= max.
    """

    min: int = 1
    opt: int = 1
    max: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(
                f"batch: min {self.min}, opt {self.opt}, max {self.max}; give "
                "1 <= min <= opt <= max"
            )

    @classmethod
    def of(cls, least: int | None, best: int | None, most: int | None) -> Batches:
        """What was given, and a fitting default for what was not."""
        low = cls.min if least is None else least
        middle = low if best is None else best
        return cls(low, middle, max(cls.max, middle) if most is None else most)


@dataclass(frozen=True)
class BuildSettings:
    """How to build.  Whatever the bindings at hand cannot do is refused, never left out.

    ``precision`` is what at least one of the engine's weighted layers has to be proved to compute
    with; ``float32`` asks for no proof.
    ``typing`` ``auto`` is strong where it is complete (TensorRT 10.12 and
    later, RTX) and weak before, where it raises the INT8 and FP16 flags and leaves the choice to
    the builder.  ``workspace_mb`` is MiB, ``None`` the runtime's own limit.  ``profiles`` are for
    graphs with a dynamic batch: ``None`` is one profile of ``Batches()``.  ``timing_cache`` is a
    file, read if it is there and written back; ``None`` keeps it in the user's cache folder.
    ``compute_capabilities`` such as ``("8.6",)`` are those that RTX compiles for ahead of time.

    Raises:
        ConfigError: A value is outside what is accepted.
    """

    runtime: str | None = None
    precision: str = "int8"
    typing: str = "auto"
    workspace_mb: int | None = None
    profiles: tuple[Batches, ...] | None = None
    optimization_level: int | None = None
    tf32: bool = True
    timing_cache: Path | None = None
    keep_timing: bool = True
    version_compatible: bool = False
    hardware_compatible: str | None = None
    dla_core: int | None = None
    gpu_fallback: bool = True
    verbosity: str = "detailed"
    compute_capabilities: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        _one_of("runtime", self.runtime, (None, *MODULES))
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("typing", self.typing, TYPINGS)
        _one_of("verbosity", self.verbosity, VERBOSITIES)
        _one_of("hardware_compatible", self.hardware_compatible, (None, *HARDWARE))
        _one_of("optimization_level", self.optimization_level, (None, *range(6)))
        _at_least("workspace_mb", self.workspace_mb, 1)
        _at_least("dla_core", self.dla_core, 0)
        if self.profiles is not None and not self.profiles:
            raise ConfigError("build: profiles is empty; give at least one, or None")
        if self.precision != "float32" and self.verbosity != "detailed":
            raise ConfigError(
                f"build: verbosity {self.verbosity!r} keeps no precision of a layer, so "
                f"{self.precision} could not be proved; use 'detailed', or precision 'float32'"
            )
        for profile in self.profiles or ():
            if self.dla_core is not None and profile.min != profile.max:
                raise ConfigError(
                    f"build: the DLA runs static shapes only and the batch is {profile.min} to "
                    f"{profile.max}; give min, opt and max the same value"
                )

    def require_sense(self, model: str) -> None:
        """Pass when a target's model (or ``teacher``) can compute in the precision asked for.

        Raises:
            ConfigError: It holds no layer in that type, so the engine would be in another.
        """
        if model == "tensorrt-fp16" and self.precision == "float32":
            raise ConfigError(
                "build: precision is 'float32' and the target tensorrt-fp16 has float16 wherever it "
                "is not integer; choose int8 or float16, or build the target tensorrt"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a side file or another process."""
        cache = None if self.timing_cache is None else str(self.timing_cache)
        return {**asdict(self), "timing_cache": cache}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BuildSettings:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: A key is unknown or a value is not accepted.
        """
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(
                f"build: unknown settings {unknown}; choose from {sorted(cls.__dataclass_fields__)}"
            )
        values = dict(data)
        if values.get("profiles") is not None:
            values["profiles"] = tuple(Batches(**profile) for profile in values["profiles"])
        if values.get("timing_cache") is not None:
            values["timing_cache"] = Path(values["timing_cache"])
        values["compute_capabilities"] = tuple(values.get("compute_capabilities", ()))
        return cls(**values)


def _one_of(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted or isinstance(value, bool):
        choices = ", ".join(str(choice) for choice in accepted if choice is not None)
        raise ConfigError(f"build: {name} is {value!r}; choose from {choices}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"build: {name} is {value}; it must be {least} or more")
