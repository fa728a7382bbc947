"""What the processor of this machine is called and which instructions it has.

Read from ``/proc/cpuinfo`` (Linux, x86-64 and Arm); elsewhere the fields are empty.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

_X86 = frozenset({"x86_64", "amd64", "i686"})
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True)
class Cpu:
    """A processor: its model name where the system tells it, architecture and flags."""

    model: str | None
    architecture: str
    flags: frozenset[str]

    @property
    def saturates_u8s8(self) -> bool:
        """Whether uint8 x int8 products saturate at 16 bits, silently, in ONNX Runtime's kernels.

        True on x86-64 without VNNI: its multiply-add adds pairs of products in int16, where
        2 x 255 x 127 does not fit.  A machine whose flags cannot be read counts as lacking them:
        wrong numbers are worse than slow ones.
        """
        return self.architecture.lower() in _X86 and not (self.flags & _VNNI)


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo"), architecture: str | None = None) -> Cpu:
    """The processor described by ``cpuinfo``; fields stay empty where there is no such file."""
    fields: dict[str, str] = {}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return Cpu(
        model=fields.get("model name") or fields.get("Model") or fields.get("Hardware"),
        architecture=architecture or platform.machine(),
        flags=frozenset((fields.get("flags") or fields.get("Features") or "").split()),
    )
