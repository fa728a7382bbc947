"""Which integer instructions the processor itself claims, without the kernel's word for it.

``/proc/cpuinfo`` is the host's under user-mode emulation and inside some sandboxes.  x86 tells by
CPUID (Intel SDM volume 2, leaf 7), Arm by the hardware capabilities that the kernel hands to every
process (Linux ``asm/hwcap.h``).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from typing import Callable

# rbx saved; leaf in edi, sub-leaf in esi, four words out at rdx
_CPUID = bytes.fromhex("534989d089f889f10fa241890041895804418948084189500c5bc3")
_REGISTERS = ("eax", "ebx", "ecx", "edx")
_X86 = {  # name as in /proc/cpuinfo: sub-leaf of leaf 7, register, bit
    "avx2": (0, "ebx", 5),
    "avx512f": (0, "ebx", 16),
    "avx512_vnni": (0, "ecx", 11),
    "amx_bf16": (0, "edx", 22),
    "amx_int8": (0, "edx", 25),
    "avx_vnni": (1, "eax", 4),
    "avx512_bf16": (1, "eax", 5),
}
_Routine = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_ARM = {  # name: which word, bit
    "asimd": (_AT_HWCAP, 1),
    "asimddp": (_AT_HWCAP, 20),
    "sve": (_AT_HWCAP, 22),
    "i8mm": (_AT_HWCAP2, 13),
    "bf16": (_AT_HWCAP2, 14),
}


def claimed_instructions() -> dict[str, bool]:
    """By name whether the processor has it; empty where it cannot be asked."""
    if not sys.platform.startswith("linux"):
        return {}
    machine = platform.machine().lower()
    try:
        if machine in ("x86_64", "amd64"):
            return _ask_x86()
        if machine in ("aarch64", "arm64"):
            return _ask_arm()
    except (OSError, ValueError, AttributeError):
        return {}  # no executable memory, or another C library: the kernel's word has to do
    return {}


def _ask_x86() -> dict[str, bool]:
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, mmap.PAGESIZE, prot=access) as memory:
        memory.write(_CPUID)
        code = (ctypes.c_char * len(_CPUID)).from_buffer(memory)
        call = _Routine(ctypes.addressof(code))
        highest = _cpuid(call, 0, 0)["eax"]
        leaves = {part: _cpuid(call, 7, part) for part in (0, 1)} if highest >= 7 else {}
        del call, code  # they would hold the memory open
    if leaves and leaves[0]["eax"] < 1:
        leaves[1] = dict.fromkeys(_REGISTERS, 0)  # there is no sub-leaf 1
    return {
        name: bool(leaves) and bool(leaves[part][register] >> bit & 1)
        for name, (part, register, bit) in _X86.items()
    }


def _cpuid(call: Callable[[int, int, int], None], leaf: int, part: int) -> dict[str, int]:
    words = (ctypes.c_uint32 * 4)()
    call(leaf, part, ctypes.addressof(words))
    return dict(zip(_REGISTERS, words))


def _ask_arm() -> dict[str, bool]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = [ctypes.c_ulong]
    words = {word: getauxval(word) for word in (_AT_HWCAP, _AT_HWCAP2)}
    return {name: bool(words[word] >> bit & 1) for name, (word, bit) in _ARM.items()}
