"""Reading /proc/cpuinfo, the processor's own word against it, and which machines saturate."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from deploy.cpu import read_cpu
from deploy.machine.instructions import claimed_instructions

X86 = "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu avx2 avx512f {}\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\n\nModel\t\t: Board Rev 1\n"


@pytest.mark.parametrize(
    ("flag", "saturates"), [("", True), ("avx512_vnni", False), ("avx_vnni", False)]
)
def test_x86_saturates_without_vnni(tmp_path: Path, flag: str, saturates: bool) -> None:
    (tmp_path / "cpuinfo").write_text(X86.format(flag))
    cpu = read_cpu(tmp_path / "cpuinfo", "x86_64")
    assert cpu.model == "Fast CPU"
    assert cpu.flags >= {"avx2", "avx512f"}
    assert cpu.saturates_u8s8 is saturates
    assert cpu.integer_instructions == ((flag,) if flag else ())
    assert cpu.emulation is None
    assert not cpu.virtual


def test_arm_never_saturates(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(ARM)
    cpu = read_cpu(tmp_path / "cpuinfo", "aarch64")
    assert (cpu.model, cpu.saturates_u8s8) == ("Board Rev 1", False)
    assert cpu.integer_instructions == ("asimddp", "i8mm", "sve")


def test_unknown_x86_counts_as_saturating(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path / "absent", "AMD64")
    assert (cpu.model, cpu.flags, cpu.saturates_u8s8) == (None, frozenset(), True)


def test_the_host_s_file_does_not_fool_an_emulated_processor(tmp_path: Path) -> None:
    """An emulated Haswell sees the host's /proc/cpuinfo, VNNI included, and saturates."""
    (tmp_path / "cpuinfo").write_text(X86.format("avx512_vnni"))
    haswell = {"avx2": True, "avx512f": False, "avx512_vnni": False, "avx_vnni": False}
    cpu = read_cpu(tmp_path / "cpuinfo", "x86_64", haswell)
    assert cpu.saturates_u8s8
    assert "avx2" in cpu.flags
    assert "denies avx512_vnni, avx512f" in str(cpu.emulation)


def test_another_architecture_s_file_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(X86.format("avx512_vnni"))
    cpu = read_cpu(tmp_path / "cpuinfo", "aarch64", {"asimddp": True, "sve": False})
    assert (cpu.model, cpu.flags) == (None, frozenset({"asimddp"}))
    assert "user-mode emulation" in str(cpu.emulation)


def test_virtual_machines_are_told(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(X86.format("hypervisor"))
    assert read_cpu(tmp_path / "cpuinfo", "x86_64").virtual


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_this_processor_s_word_agrees_with_the_kernel_s() -> None:
    claimed = claimed_instructions()
    if platform.machine() in ("x86_64", "aarch64"):
        assert claimed
    cpu = read_cpu()
    if cpu.emulation is None:
        listed = {flag for flag, there in claimed.items() if there}
        kernel = read_cpu(claimed={}).flags
        # The kernel may hide what the processor has, never the other way round.
        assert {flag for flag in claimed if flag in kernel} <= listed
