"""Reading /proc/cpuinfo, and which machines saturate."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cpu import read_cpu

X86 = "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu avx2 avx512f {}\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: Board Rev 1\n"


@pytest.mark.parametrize(
    ("flag", "saturates"), [("", True), ("avx512_vnni", False), ("avx_vnni", False)]
)
def test_x86_saturates_without_vnni(tmp_path: Path, flag: str, saturates: bool) -> None:
    (tmp_path / "cpuinfo").write_text(X86.format(flag))
    cpu = read_cpu(tmp_path / "cpuinfo", "x86_64")
    assert cpu.model == "Fast CPU"
    assert cpu.flags >= {"avx2", "avx512f"}
    assert cpu.saturates_u8s8 is saturates


def test_arm_never_saturates(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(ARM)
    cpu = read_cpu(tmp_path / "cpuinfo", "aarch64")
    assert (cpu.model, cpu.saturates_u8s8) == ("Board Rev 1", False)
    assert "asimddp" in cpu.flags


def test_unknown_x86_counts_as_saturating(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path / "absent", "AMD64")
    assert (cpu.model, cpu.flags, cpu.saturates_u8s8) == (None, frozenset(), True)
