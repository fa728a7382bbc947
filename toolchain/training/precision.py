"""Which device, number format and memory layout training and evaluation use on this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deploy.errors import ConfigError

# torch's names of the instructions that make a bf16 convolution faster than a float one.
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")


@dataclass(frozen=True)
class Precision:
    """A choice for one machine, and why it was made.

    Attributes:
        name: ``float32``, or ``bf16``: weights in float32, convolutions and products in bfloat16.
        device: Torch device string.
        reason: Half a sentence for the log.
        memory_format: Layout of images and of convolution weights.
    """

    name: Literal["float32", "bf16"]
    device: str
    reason: str
    memory_format: torch.memory_format = torch.channels_last

    def __str__(self) -> str:
        layout = "channels-last" if self.memory_format is torch.channels_last else "contiguous"
        return f"{self.name} {layout} on {self.device}: {self.reason}"

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``, without an index."""
        return torch.device(self.device).type

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which a forward pass runs in this precision.

        The cast cache is off: a weight is used once per pass, so it would only hold memory, and a
        cast must not outlive a switch between the views of one network.
        """
        return torch.autocast(
            self.device_type,
            dtype=torch.bfloat16,
            enabled=self.name == "bf16",
            cache_enabled=False,
        )

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, and its weights to the memory format, in place."""
        network.to(torch.device(self.device))
        network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        return network

    def images(self, images_BCHW: Tensor) -> Tensor:
        """The same images on the device and in the memory format."""
        layout = self.memory_format if images_BCHW.dim() == 4 else torch.preserve_format
        return images_BCHW.to(self.device, non_blocking=True, memory_format=layout)


def choose_precision(
    precision: Literal["auto", "float32", "bf16"] = "auto",
    device: str = "auto",
    *,
    cpu_flags: frozenset[str] | None = None,
) -> Precision:
    """Pick device, number format and layout; explicit values are obeyed.

    Args:
        precision: ``auto`` takes bf16 where the device has instructions for it.
        device: ``auto`` takes the GPU if there is one, else the CPU; or a torch device string.
        cpu_flags: What the CPU can do; read from the machine when None.

    Raises:
        ConfigError: An unknown precision, or a device that this machine does not have.
    """
    if precision not in ("auto", "float32", "bf16"):
        raise ConfigError(
            f"precision: unknown {precision!r}; choose from 'auto', 'float32', 'bf16'"
        )
    chosen = _choose_device(device)
    if torch.device(chosen).type == "cuda":
        able, why = torch.cuda.is_bf16_supported(), "the GPU"
    else:
        flags = _cpu_flags() if cpu_flags is None else cpu_flags
        found = [flag for flag in BF16_FLAGS if flag in flags]
        able, why = bool(found), f"the CPU ({found[0]})" if found else "the CPU"
    if precision == "auto":
        has = "has" if able else "has no"
        return Precision("bf16" if able else "float32", chosen, f"{why} {has} bf16 instructions")
    warning = "" if able or precision == "float32" else f", though {why} has no bf16 instructions"
    return Precision(precision, chosen, f"as asked{warning}")


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        kind, index = device, None
    if kind == "cpu":
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cuda" or (index or 0) >= count:
        accepted = ", ".join(["'auto'", "'cpu'", *(f"'cuda:{i}'" for i in range(count))])
        raise ConfigError(f"device: {device!r} is not on this machine; choose from {accepted}")
    return device


def _cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU, in torch's spelling."""
    return frozenset(name for name, able in torch.cpu.get_capabilities().items() if able is True)
