"""INA chips: which rail is the total on each board, by label, in the right unit, signs kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import DeviceError
from deploy.power.boards import SUPPLIES, choose_total, find_supply
from deploy.power.finding import find_meter
from deploy.power.ina import InaSource, find_rails
from deploy.power.meter import SampledMeter

Files = Callable[[Path, Mapping[str, str]], None]
DRIVERS = "sys/bus/i2c/drivers"


def source_of(root: Path, model: str) -> InaSource:
    rails = find_rails(root, find_supply(model))
    source = InaSource(rails, choose_total([rail.name for rail in rails], model))
    source.begin()
    return source


def test_the_total_of_every_board(every_board: tuple[Path, Any]) -> None:
    root, truth = every_board
    reading = source_of(root, truth.model).read()
    assert reading.power_w * 1e3 == pytest.approx(truth.total_mw)
    rails = {name.strip(): mw for chip in truth.chips for name, mw in chip.rails_mw.items()}
    rails.pop("NC", None)
    assert {name: round(w * 1e3) for name, w in reading.rails_w.items()} == rails


def test_hwmon_numbers_change_between_boots(fake_board: Callable[..., Any], tmp_path: Path) -> None:
    root, truth = fake_board("agx-orin", first_node=2)
    first = source_of(root, truth.model).read()
    shutil.rmtree(root)
    root, truth = fake_board("agx-orin", first_node=11)
    assert source_of(root, truth.model).read() == first


def test_labels_decide_not_channels(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, truth = fake_board("orin-nano")
    node = f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3"
    write_files(root, {f"{node}/in1_label": "VDD_SOC\n", f"{node}/in3_label": "VDD_IN\n"})
    assert source_of(root, truth.model).read().power_w == pytest.approx(1.470)


def test_negative_readings_are_kept(fake_board: Callable[..., Any]) -> None:
    root, truth = fake_board("agx-orin")
    reading = source_of(root, truth.model).read()
    assert reading.rails_w["VDD_CPU_CV"] == pytest.approx(-0.4)
    assert reading.power_w == pytest.approx(4.8 - 0.4 + 3.84)


def test_resolution_is_that_of_the_shunts(fake_board: Callable[..., Any]) -> None:
    root, truth = fake_board("orin-nano")  # 40 uV over 5 mOhm at 5 V
    assert source_of(root, truth.model).resolution_w == pytest.approx(0.040)
    root, truth = fake_board("agx-orin")  # 40 uV over 2 mOhm at 20 V, three rails
    assert source_of(root, truth.model).resolution_w == pytest.approx(0.4 * 3**0.5)
    root, truth = fake_board("nano")  # JetPack 4 does not tell
    assert source_of(root, truth.model).resolution_w is None


def test_microwatts_of_thor(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, truth = fake_board("thor")
    file = f"{DRIVERS}/ina238/2-0044/hwmon/hwmon4/power1_input"
    write_files(root, {file: "87426000\n"})
    assert source_of(root, truth.model).read().power_w == pytest.approx(87.426)


def test_a_new_register_value_is_an_update_even_at_equal_power(
    fake_board: Callable[..., Any], write_files: Files
) -> None:
    root, truth = fake_board("orin-nano")
    source = source_of(root, truth.model)
    first = source.read()
    node = f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3"
    write_files(root, {f"{node}/in1_input": "4820\n", f"{node}/curr1_input": "1000\n"})
    second = source.read()
    assert second.power_w == pytest.approx(first.power_w)
    assert second.stamp != first.stamp


def test_find_meter_says_what_it_measures(every_board: tuple[Path, Any]) -> None:
    root, _ = every_board
    meter = find_meter(root)
    told = meter.describe()
    assert told["name"] == "ina"
    assert told["board"] in {supply.board for supply in SUPPLIES}
    assert told["scope"]
    assert not set(told["total"]) & {"VDDQ_VDD2_1V8AO", "VDD_SOC", "POM_5V_CPU", "VDD_GPU"}


def test_agx_orin_is_called_a_lower_bound(fake_board: Callable[..., Any]) -> None:
    root, _ = fake_board("agx-orin")
    told = find_meter(root).describe()
    assert told["total"] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    assert "lower bound" in told["scope"]
    assert any("1.02 x sum + 3.1 W" in remark for remark in told["remarks"])


def test_unknown_rails_are_listed(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("orin-nano")
    node = f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3"
    write_files(
        root, {f"{node}/in1_label": "MY_RAIL\n", "proc/device-tree/model": "Our Carrier 7\0"}
    )
    write_files(root, {"proc/device-tree/compatible": "us,carrier\0nvidia,tegra234\0"})
    with pytest.raises(DeviceError, match="rails here: MY_RAIL, VDD_CPU_GPU_CV, VDD_SOC") as caught:
        find_meter(root)
    assert "name the rails" in str(caught.value)
    assert "\n" not in str(caught.value)
    meter = find_meter(root, total=["MY_RAIL"])
    assert meter.describe()["total"] == ["MY_RAIL"]
    with pytest.raises(DeviceError, match="there is no rail OTHER"):
        find_meter(root, total=["OTHER"])


def test_a_total_that_counts_twice_is_told(fake_board: Callable[..., Any]) -> None:
    root, _ = fake_board("agx-orin")
    remarks = find_meter(root, total=["VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]).describe()["remarks"]
    assert "VDDQ_VDD2_1V8AO is part of the others and counted twice" in remarks
    alone = find_meter(root, total=["VDD_GPU_SOC"]).describe()["remarks"]
    assert alone == ["the rails of the total were chosen by hand"]


def test_a_known_board_without_its_rail(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("xavier-nx")
    node = f"{DRIVERS}/ina3221/7-0040/hwmon/hwmon3"
    write_files(root, {f"{node}/in1_label": "NC\n"})
    with pytest.raises(DeviceError, match="total of a Jetson Xavier NX is VDD_IN"):
        find_meter(root)


def test_a_carrier_of_somebody_else_is_known_by_its_module_or_rails(
    fake_board: Callable[..., Any], write_files: Files
) -> None:
    root, _ = fake_board("orin-nx")
    write_files(root, {"proc/device-tree/model": "Our Carrier 7\0"})
    assert find_meter(root).describe()["board"] == "Jetson Orin NX"
    write_files(root, {"proc/device-tree/compatible": "us,carrier\0nvidia,tegra234\0"})
    told = find_meter(root).describe()
    assert (told["board"], told["total"]) == (None, ["VDD_IN"])
    assert "recognised by its rails alone" in told["remarks"]


def test_the_nano_without_a_sensor(tmp_path: Path, write_files: Files) -> None:
    model = "NVIDIA Jetson Nano 2GB Developer Kit\0"
    write_files(tmp_path, {"proc/device-tree/model": model})
    write_files(tmp_path, {"proc/device-tree/compatible": "nvidia,p3448-0003\0nvidia,tegra210\0"})
    with pytest.raises(DeviceError, match="has no power sensor; measure without power"):
        find_meter(tmp_path)


def test_rails_of_a_total_must_differ(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("agx-orin")
    node = f"{DRIVERS}/ina3221/1-0041/hwmon/hwmon4"
    write_files(root, {f"{node}/in2_label": "VDD_CPU_CV\n"})
    with pytest.raises(DeviceError, match="VDD_CPU_CV exists on two chips"):
        find_meter(root)


@pytest.mark.parametrize("text", ["", "rubbish\n", "12.5\n"])
def test_a_sensor_that_holds_text(
    fake_board: Callable[..., Any], write_files: Files, text: str
) -> None:
    root, _ = fake_board("orin-nano")
    file = f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3/curr1_input"
    write_files(root, {file: text})
    with pytest.raises(DeviceError, match="where an integer belongs") as caught:
        find_meter(root)
    assert "curr1_input" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_sensor_that_is_closed(fake_board: Callable[..., Any]) -> None:
    root, _ = fake_board("orin-nano")
    (root / f"{DRIVERS}/ina3221/1-0040/hwmon/hwmon3/curr1_input").chmod(0)
    with pytest.raises(DeviceError, match="permission denied; run as root"):
        find_meter(root)


@pytest.mark.parametrize("file", ["curr1_input", "in1_label"])
def test_permission_denied_says_what_to_do(
    fake_board: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    root, _ = fake_board("orin-nano")
    real = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path.name == file:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(DeviceError, match="permission denied; run as root.*udev rule"):
        find_meter(root)


def test_a_node_that_vanishes_in_the_middle_of_the_run(fake_board: Callable[..., Any]) -> None:
    root, truth = fake_board("orin-nano")
    meter = SampledMeter(source_of(root, truth.model), interval_s=0.005)
    meter.start()
    shutil.rmtree(root / f"{DRIVERS}/ina3221")
    with pytest.raises(
        DeviceError, match="ina: failed after .* readings: .*no such file"
    ) as caught:
        meter.stop()
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match="does not run"):
        meter.stop()


def test_no_sensor_at_all(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no sensor that sees this machine") as caught:
        find_meter(tmp_path)
    assert "\n" not in str(caught.value)
    assert "--no-power" in str(caught.value)


def test_a_meter_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="there is no meter 'wattmeter'; choose from ina,"):
        find_meter(tmp_path, wanted="wattmeter")
