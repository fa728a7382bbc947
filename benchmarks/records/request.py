"""What a benchmark run is asked to do: plain data that travels to a device and back."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Mapping

from deploy.errors import ConfigError

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
PROFILES = ("quick", "standard", "mlperf")
PROVIDERS = ("ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
MODELS = ("teacher", "student")


@dataclass(frozen=True)
class Request:
    """One run of ``benchmarks.bench.run_bench``; wrong values are refused when it is made.

    ``target`` is what the student was lowered for; ``None`` takes the provider's own.  ``batch`` is
    samples per call; ``None`` takes the scenario's (1, 8 in multi-stream, 32 offline).
    ``affinity`` are the processors to stay on, empty for the system's choice.  ``copies`` says
    whether copies to and from the device count.  ``target_qps`` is the load of the server scenario;
    without it the highest load is searched whose p99 stays within ``bound_ms``.  ``power`` asks for
    energy, ``layers`` for the time of each layer, ``loadgen`` for MLPerf's LoadGen as cross-check.
    ``meter`` names a power meter instead of leaving the choice, ``rails`` those whose sum is the
    total where a board is not known (both as in ``deploy.power.finding``).
    ``duration_s`` and ``queries`` replace the profile's floors.  ``device`` names the place that
    was asked for; ``device_kind`` its kind.

    Raises:
        ConfigError: A value is not accepted.
    """

    scenario: str = "single-stream"
    profile: str = "standard"
    models: tuple[str, ...] = MODELS
    provider: str = "ort-cpu"
    target: str | None = None
    threads: int = 1
    affinity: tuple[int, ...] = ()
    batch: int | None = None
    copies: bool = True
    cuda_graph: bool = False
    spin: bool = True
    power: bool = False
    layers: bool = True
    loadgen: bool = False
    target_qps: float | None = None
    bound_ms: float | None = None
    duration_s: float | None = None
    queries: int | None = None
    seed: int = 0
    meter: str | None = None
    rails: tuple[str, ...] = ()
    device: str = "local"
    device_kind: str = "local"

    def __post_init__(self) -> None:
        for name in ("models", "affinity", "rails"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        _choose("scenario", self.scenario, SCENARIOS)
        _choose("profile", self.profile, PROFILES)
        _choose("provider", self.provider, PROVIDERS)
        for model in self.models:
            _choose("models", model, MODELS)
        if not self.models or len(set(self.models)) != len(self.models):
            raise ConfigError(
                f"models: {list(self.models)}; give each of {list(MODELS)} at most once"
            )
        for name in ("copies", "cuda_graph", "spin", "power", "layers", "loadgen"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: {getattr(self, name)!r}; give true or false")
        _whole("threads", self.threads, 1)
        _whole("seed", self.seed, 0)
        for name in ("batch", "queries"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for processor in self.affinity:
            _whole("affinity", processor, 0)
        for name in ("target_qps", "bound_ms", "duration_s"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < float("inf")):
                raise ConfigError(f"{name}: {value!r}; give a number above 0")
        for name in ("device", "device_kind"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name}: {getattr(self, name)!r}; give a text")
        for name in ("target", "meter"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ConfigError(f"{name}: {getattr(self, name)!r}; give a text, or leave it out")
        if not all(isinstance(rail, str) for rail in self.rails):
            raise ConfigError(f"rails: {list(self.rails)}; give names of rails")
        if not self.power and (self.meter or self.rails):
            raise ConfigError("meter, rails: no power was asked for; add --power or leave them out")
        if self.scenario == "server":
            if (self.target_qps is None) == (self.bound_ms is None):
                raise ConfigError(
                    "server: give the load in queries per second (target_qps), or the longest "
                    "p99 that is acceptable (bound_ms), to search the highest load that keeps it"
                )
        elif self.target_qps is not None or self.bound_ms is not None:
            raise ConfigError(
                f"{self.scenario}: target_qps and bound_ms belong to the server scenario; "
                "leave them out or ask for server"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON's types only."""
        made = dataclasses.asdict(self)
        for name in ("models", "affinity", "rails"):
            made[name] = list(getattr(self, name))
        return made

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Request:
        """The request that ``to_dict`` described.

        Raises:
            ConfigError: A key or a value is not accepted; names the nearest key.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(f"request: {type(given).__name__}; give an object of settings")
        names = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; choose from {names}"
                raise ConfigError(f"request: unknown setting {key!r}{hint}")
        return cls(**given)


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise ConfigError(f"{name}: {value!r}; give a list")


def _choose(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        near = difflib.get_close_matches(str(value), accepted, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{name}: unknown {value!r}; choose from {', '.join(accepted)}{hint}")


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: {value!r}; give a whole number of {least} or more")
