"""What the processor of this machine is called and which instructions it has.

Read from ``/proc/cpuinfo`` (Linux, x86-64 and Arm) and checked against the processor's own word:
under user-mode emulation the file is the host's.  Elsewhere the fields are empty.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from deploy.machine.instructions import claimed_instructions

CPUINFO = Path("/proc/cpuinfo")
_X86 = frozenset({"x86_64", "amd64", "i686"})
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
# What integer kernels are chosen by: dot products, then matrices.
_INTEGER = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")


@dataclass(frozen=True)
class Cpu:
    """A processor: its model name where the system tells it, architecture and flags.

    ``emulation`` says why this is no processor of its own: timings on it mean nothing.
    """

    model: str | None
    architecture: str
    flags: frozenset[str]
    emulation: str | None = None

    @property
    def saturates_u8s8(self) -> bool:
        """Whether uint8 x int8 products saturate at 16 bits, silently, in ONNX Runtime's kernels.

        True on x86-64 without VNNI: its multiply-add adds pairs of products in int16, where
        2 x 255 x 127 does not fit.  A machine whose flags cannot be read counts as lacking them:
        wrong numbers are worse than slow ones.
        """
        return self.architecture.lower() in _X86 and not (self.flags & _VNNI)

    @property
    def integer_instructions(self) -> tuple[str, ...]:
        """Dot products and matrix products of 8-bit integers that this processor has."""
        return tuple(flag for flag in _INTEGER if flag in self.flags)

    @property
    def virtual(self) -> bool:
        """Whether a hypervisor runs it (x86 tells): neighbours may take its time."""
        return "hypervisor" in self.flags


def read_cpu(
    cpuinfo: Path = CPUINFO,
    architecture: str | None = None,
    claimed: Mapping[str, bool] | None = None,
) -> Cpu:
    """The processor described by ``cpuinfo``; fields stay empty where there is no such file.

    ``claimed`` is what the processor says of itself; asked when ``cpuinfo`` is this machine's own.
    A flag counts only where neither denies it.
    """
    fields: dict[str, str] = {}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    if claimed is None:
        claimed = claimed_instructions() if cpuinfo == CPUINFO and architecture is None else {}
    machine = architecture or platform.machine()
    key, other = ("flags", "Features") if machine.lower() in _X86 else ("Features", "flags")
    listed = frozenset(fields.get(key, "").split())
    denied = frozenset(name for name, there in claimed.items() if not there)
    own = frozenset(name for name, there in claimed.items() if there)
    foreign = other in fields and key not in fields
    model = fields.get("model name") or fields.get("Model") or fields.get("Hardware")
    return Cpu(
        model=None if foreign else model,
        architecture=machine,
        flags=(listed - denied) or own,
        emulation=_emulation(foreign, machine, sorted(listed & denied), model),
    )


def _emulation(foreign: bool, machine: str, denied: list[str], model: str | None) -> str | None:
    if foreign:
        return f"the program is {machine}, the processor in {CPUINFO} is not: user-mode emulation"
    if denied:
        return f"the processor denies {', '.join(denied)}, which {CPUINFO} lists: emulation"
    if model and "QEMU" in model:
        return f"the processor is called {model!r}"
    return None
