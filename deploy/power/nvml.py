"""NVIDIA graphics cards, by NVML: every metric is tried, since opening NVML proves nothing.

On Jetson NVML opens and then supports nothing.  ``pynvml`` (package nvidia-ml-py) is imported by the
function that opens it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable, Mapping

from deploy.errors import DeviceError, MissingDependency
from deploy.power.meter import Reading

_POWER_INSTANT = 186  # nvml.h; older bindings do not name it
_MODES = {
    "instant": "power at the moment (POWER_INSTANT)",
    "usage": "power as NVML averages it: over the last second on Ampere and later",
}


@dataclass(frozen=True)
class Metric:
    """A number that NVML has, or the reason why not."""

    value: float | None
    why: str | None


def open_nvml() -> Any:
    """The initialised ``pynvml`` module.

    Raises:
        MissingDependency: It is not installed.
        DeviceError: There is no driver.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependency(
            "nvml: needs nvidia-ml-py, which is not installed; install it with: "
            "pip install 'compress-deploy[nvml]', on a device: pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError(f"nvml: cannot be opened: {error}; is a driver loaded?") from error
    return pynvml


def visible_device(nvml: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """The card that CUDA's device 0 is, which ``CUDA_VISIBLE_DEVICES`` may have moved.

    NVML counts cards by their place on the bus; CUDA counts the fastest first, unless
    ``CUDA_DEVICE_ORDER`` tells it otherwise.  Among equal cards both count alike.

    Raises:
        DeviceError: There is none, or cards differ and nothing says which one CUDA takes for 0.
    """
    first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    try:
        if first.isdigit():
            if environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
                _require_equal_cards(nvml, first)
            return nvml.nvmlDeviceGetHandleByIndex(int(first))
        return nvml.nvmlDeviceGetHandleByUUID(first)
    except nvml.NVMLError as error:
        raise DeviceError(f"nvml: no card {first}: {error}; see nvidia-smi -L") from error


def _require_equal_cards(nvml: Any, number: str) -> None:
    count = int(nvml.nvmlDeviceGetCount())
    cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count if count > 1 else 0)]
    names = sorted({_text(nvml.nvmlDeviceGetName(card)) for card in cards})
    if len(names) > 1:
        raise DeviceError(
            f"nvml: this machine has {' and '.join(names)}, which CUDA counts in another order than "
            f"NVML, so card {number} may be either; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or "
            "CUDA_VISIBLE_DEVICES to a UUID of nvidia-smi -L"
        )


def ask(nvml: Any, question: Callable[[], Any]) -> Metric:
    """One metric, or NVML's reason for not having it."""
    try:
        return Metric(float(question()), None)
    except nvml.NVMLError as error:
        return Metric(None, str(error))


def describe_cards(nvml: Any) -> list[dict[str, Any]]:
    """Name, clocks, limits and state of every card; what NVML does not tell is ``None``.

    ``missing`` in each says why, by NVML's own words.
    """
    cards = []
    for index in range(int(nvml.nvmlDeviceGetCount())):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        card: dict[str, Any] = {"index": index, "name": _text(nvml.nvmlDeviceGetName(handle))}
        missing = {}
        for field, question in _questions(nvml, handle).items():
            answer = ask(nvml, question)
            card[field] = answer.value
            if answer.why is not None:
                missing[field] = answer.why
        cards.append({**card, "missing": missing})
    return cards


def _questions(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    def compute() -> float:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return major + minor / 10

    def clock(kind: int) -> Callable[[], Any]:
        return lambda: nvml.nvmlDeviceGetClockInfo(handle, kind)

    def most(kind: int) -> Callable[[], Any]:
        return lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, kind)

    return {
        "compute_capability": compute,
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "sm_clock_mhz": clock(nvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": most(nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": clock(nvml.NVML_CLOCK_MEM),
        "memory_clock_max_mhz": most(nvml.NVML_CLOCK_MEM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "energy_counter_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
        "clock_event_reasons": lambda: event_reasons(nvml, handle),
        "persistence_mode": lambda: nvml.nvmlDeviceGetPersistenceMode(handle),
    }


def card_state(nvml: Any, handle: Any) -> dict[str, float | None]:
    """Clocks and temperature of now; ``None`` where NVML does not tell."""
    questions = _questions(nvml, handle)
    return {
        name: ask(nvml, questions[name]).value
        for name in ("sm_clock_mhz", "memory_clock_mhz", "temperature_c")
    }


def event_reasons(nvml: Any, handle: Any) -> int:
    """Why the clocks are where they are, as bits; by the older name where the newer is absent."""
    newer = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return int((newer or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))


class NvmlSource:
    """One card: its power, and its energy counter where it has one (Volta and later).

    Raises:
        DeviceError: Neither power nor energy is supported; says what each answered.
    """

    name = "nvml"
    resolution_w = 1e-3

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._card = _text(nvml.nvmlDeviceGetName(handle))
        asked = {"instant": self._instant_w, "usage": self._usage_w, "energy": self._energy_j}
        answers = {name: ask(nvml, question) for name, question in asked.items()}
        self._answers = answers
        self._mode = next((mode for mode in _MODES if answers[mode].value is not None), None)
        self._counts = answers["energy"].value is not None
        if self._mode is None:
            told = ", ".join(f"{name}: {answer.why}" for name, answer in answers.items())
            raise DeviceError(
                f"nvml: {self._card} opens but tells no power ({told}); on a Jetson its INA "
                "sensors do"
            )

    @property
    def method(self) -> str:
        return "power and energy counter" if self._counts else "power"

    def describe(self) -> dict[str, Any]:
        return {
            "board": self._card,
            "scope": "the graphics card as its own sensor sees it; not the processor or the machine",
            "total": [self._card],
            "rails": [self._card],
            "sensor_update_s": 0.1,
            "metrics": {
                name: answer.why or "supported" for name, answer in sorted(self._answers.items())
            },
            "remarks": [
                _MODES[self._mode or "usage"],
                "sensors of some cards see a quarter of the time (A100, H100): many long windows help",
            ],
        }

    def begin(self) -> None:
        """Nothing to prepare."""

    def read(self) -> Reading:
        try:
            power_w = self._instant_w() if self._mode == "instant" else self._usage_w()
            energy_j = self._energy_j() if self._counts else None
        except self._nvml.NVMLError as error:
            raise DeviceError(f"nvml: {self._card}: {error}") from error
        return Reading(power_w, {self._card: power_w}, (power_w, energy_j), energy_j)

    def _usage_w(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3

    def _energy_j(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def _instant_w(self) -> float:
        nvml = self._nvml
        number = getattr(nvml, "NVML_FI_DEV_POWER_INSTANT", _POWER_INSTANT)
        field = nvml.nvmlDeviceGetFieldValues(self._handle, [number])[0]
        if field.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(field.nvmlReturn)
        return float(field.value.uiVal) / 1e3  # an unsigned int of milliwatts


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
