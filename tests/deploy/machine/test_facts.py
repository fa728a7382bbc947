"""Fields with reasons, files of sysfs, and programs that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import DeviceError
from deploy.machine.facts import Facts, first_of, installed_packages, run_tool
from deploy.machine.jetpack import RELEASES, jetpack_of, read_l4t
from deploy.machine.memory import read_disk, read_memory
from deploy.machine.sysfs import optional_number, optional_text, read_number, read_text


def fail(message: str) -> Callable[[], object]:
    def question() -> object:
        raise DeviceError(message)

    return question


def test_what_is_none_has_a_reason() -> None:
    inner = Facts()
    inner.put("known", 0, "unused")
    inner.put("unknown", None, "nobody tells")
    facts = Facts()
    facts.read("asked", fail("closed"))
    facts.nest("inner", inner)
    assert facts.values == {"asked": None, "inner": {"known": 0, "unknown": None}}
    assert facts.missing == {"asked": "closed", "inner.unknown": "nobody tells"}


def test_the_first_answer_counts() -> None:
    assert first_of(fail("no"), lambda: 3, fail("never asked")) == 3
    with pytest.raises(DeviceError, match="^one; two$"):
        first_of(fail("one"), fail("two"), fail("one"))


def test_files_of_sysfs(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_bytes(b"NVIDIA Board\0")
    assert read_text(file) == "NVIDIA Board"
    file.write_text("-398\n")
    assert read_number(file) == -398
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DeviceError, match="holds bytes that are no text"):
        read_text(file)
    with pytest.raises(DeviceError, match="cannot be read .Is a directory."):
        read_text(tmp_path)
    assert optional_text(tmp_path / "absent") is None
    assert optional_number(tmp_path / "absent") is None


def test_programs(tmp_path: Path, program: Callable[[Path, str, str], Path]) -> None:
    with pytest.raises(DeviceError, match="^tool: not installed$"):
        run_tool(tmp_path, "tool")
    program(tmp_path, "tool", "echo said $1; echo noise >&2")
    assert run_tool(tmp_path, "tool", "it") == "said it\n"
    program(tmp_path, "tool", "echo 'you must\nbe root' >&2; exit 4")
    with pytest.raises(DeviceError, match="^tool: exit status 4: you must be root$"):
        run_tool(tmp_path, "tool")
    program(tmp_path, "tool", "exec sleep 9")
    with pytest.raises(DeviceError, match="^tool: no answer within 0.1 s$"):
        run_tool(tmp_path, "tool", timeout_s=0.1)
    (tmp_path / "usr/bin/tool").write_bytes(b"\0\0")
    with pytest.raises(DeviceError, match="^tool: cannot be run"):
        run_tool(tmp_path, "tool")


def test_debian_packages(tmp_path: Path) -> None:
    assert installed_packages(tmp_path) == {}
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: here\nStatus: install ok installed\nVersion: 1.2-3\nDescription: a: b\n more: c\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 9\n"
    )
    assert installed_packages(tmp_path) == {"here": "1.2-3"}


def test_l4t_from_its_package_in_a_container(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.3-20250107174145\n"
    )
    assert read_l4t(tmp_path) == "36.4.3"


def test_l4t_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("hello\n")
    with pytest.raises(DeviceError, match="'hello' names no release; package nvidia-l4t-core"):
        read_l4t(tmp_path)


@pytest.mark.parametrize(
    ("l4t", "jetpack", "tensorrt", "python"),
    [
        ("32.7.1", "4.6.x", "8.2", "3.6"),
        ("35.4.1", "5.1.x", "8.5", "3.8"),
        ("36.3.0", "6.0", "8.6", "3.10"),
        ("36.4.0", "6.1", "10.3", "3.10"),
        ("36.4.3", "6.2", "10.3", "3.10"),
        ("36.4.4", "6.2.1", "10.3", "3.10"),
        ("36.4.7", "6.2.1", "10.3", "3.10"),
        ("36.5.0", "6.2.2", "10.3", "3.10"),
        ("38.2.0", "7.0", "10.13", "3.12"),
        ("38.4.0", "7.1", "10.13", "3.12"),
        ("39.2.0", "7.2", "10.16", "3.12"),
        ("39.2.1", "7.2.1", "10.16", "3.12"),
    ],
)
def test_the_table_of_jetpacks(l4t: str, jetpack: str, tensorrt: str, python: str) -> None:
    release = jetpack_of(l4t)
    assert (release.version, release.tensorrt, release.python) == (jetpack, tensorrt, python)


@pytest.mark.parametrize("l4t", ["36.51.0", "350.1.0", "3.2.7", "40.1.0"])
def test_releases_that_are_in_no_table(l4t: str) -> None:
    with pytest.raises(DeviceError, match="not known which JetPack"):
        jetpack_of(l4t)


def test_no_prefix_is_listed_twice() -> None:
    prefixes = [prefix for release in RELEASES for prefix in release.l4t]
    assert len(prefixes) == len(set(prefixes))


def test_memory_and_disk(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2048 kB\nMemFree: 9 kB\n")
    assert read_memory(tmp_path) == {"total_bytes": 2048 * 1024, "available_bytes": None}
    disk = read_disk(tmp_path / "not" / "yet")
    assert 0 < disk["free_bytes"] <= disk["total_bytes"]
    assert disk["writable"]
    (tmp_path / "proc/meminfo").write_text("nothing\n")
    with pytest.raises(DeviceError, match="has no MemTotal"):
        read_memory(tmp_path)
