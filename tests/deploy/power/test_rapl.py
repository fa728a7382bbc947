"""RAPL: what is added up, how the counters wrap, and what closed files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import DeviceError
from deploy.power import finding
from deploy.power.finding import find_meter
from deploy.power.rapl import RaplSource, find_zones

Tree = Callable[[Path], Path]


def add(root: Path, zone: str, microjoules: int) -> None:
    file = root / f"sys/class/powercap/intel-rapl:{zone}/energy_uj"
    file.write_text(f"{(int(file.read_text()) + microjoules) % 10_000_000}\n")


def source_of(root: Path) -> tuple[RaplSource, list[float]]:
    now = [100.0]
    return RaplSource(find_zones(root), clock=lambda: now[0], sleep=lambda s: None), now


def test_packages_and_memory_are_added_and_nothing_else(tmp_path: Path, rapl_tree: Tree) -> None:
    source, now = source_of(rapl_tree(tmp_path))
    source.begin()
    for zone, joules in (("0", 8), ("0:0", 5), ("0:1", 1), ("0:2", 2), ("1", 4)):
        add(tmp_path, zone, joules * 1_000_000)
    now[0] += 2.0
    reading = source.read()
    assert reading.power_w == pytest.approx((8 + 2 + 4) / 2)
    assert reading.rails_w["package-0/core"] == pytest.approx(2.5)
    assert reading.energy_j == pytest.approx(14.0)
    assert source.describe()["total"] == ["package-0", "package-0/dram", "package-1"]


def test_counters_wrap(tmp_path: Path, rapl_tree: Tree) -> None:
    source, now = source_of(rapl_tree(tmp_path))
    source.begin()
    energies = []
    for _ in range(5):
        add(tmp_path, "1", 3_000_000)  # of a range of 10 J, starting at 2
        now[0] += 1.0
        reading = source.read()
        assert reading.power_w == pytest.approx(3.0)
        energies.append(reading.energy_j)
    assert energies == pytest.approx([3, 6, 9, 12, 15])


def test_a_counter_that_holds_text(tmp_path: Path, rapl_tree: Tree) -> None:
    (rapl_tree(tmp_path) / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("many\n")
    with pytest.raises(DeviceError, match="holds 'many' where an integer belongs"):
        find_meter(tmp_path, provider="ort-cpu")


def test_closed_to_all_but_root(
    tmp_path: Path, rapl_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    rapl_tree(tmp_path)
    real = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(DeviceError, match="permission denied; run as root.*sudo chmod o.r"):
        find_meter(tmp_path, provider="ort-cpu")


def test_the_processors_meter_does_not_see_a_graphics_card(tmp_path: Path, rapl_tree: Tree) -> None:
    rapl_tree(tmp_path)
    assert find_meter(tmp_path, provider="ort-cpu").name == "rapl"
    with pytest.raises(DeviceError, match="no sensor that sees ort-cuda: nvml"):
        find_meter(tmp_path, provider="ort-cuda")


def test_two_meters_that_see_different_things(
    tmp_path: Path,
    rapl_tree: Tree,
    fake_nvml: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rapl_tree(tmp_path)
    monkeypatch.setattr(finding, "open_nvml", fake_nvml)
    with pytest.raises(DeviceError, match="say which one sees the work: --meter nvml or"):
        find_meter(tmp_path)
    assert find_meter(tmp_path, provider="ort-cuda").name == "nvml"
    assert find_meter(tmp_path, provider="ort-cpu").name == "rapl"
    assert find_meter(tmp_path, wanted="nvml").name == "nvml"


def test_no_package_no_total(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    for name, text in (("name", "psys"), ("energy_uj", "1"), ("max_energy_range_uj", "9")):
        (folder / name).write_text(text)
    with pytest.raises(DeviceError, match=r"no package among \['psys'\]"):
        find_meter(tmp_path, wanted="rapl")
