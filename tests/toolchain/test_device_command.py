"""``compress-deploy device``: names for places, and whether they can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.bundle import Bundle
from deploy.devices.local import LocalDevice
from deploy.errors import ConfigError, DeviceError
from toolchain.cli import app


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "120")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["device", *map(str, arguments)])


def test_added_listed_removed(tmp_path: Path) -> None:
    assert (
        call("add", "orin", "ssh://me@board:2222", "--dir", "/data", "--jump", "gate").exit_code
        == 0
    )
    assert (
        call("add", "nano", "ssh://nano", "--python", "/opt/py", "--ssh-config", "x").exit_code == 0
    )
    shown = call("list")
    for word in ("local", "orin", "ssh://me@board:2222", "/data", "gate", "/opt/py"):
        assert word in shown.stdout
    listed = json.loads(call("list", "--json").stdout)
    assert [entry["name"] for entry in listed] == ["nano", "orin"]
    assert listed[0]["ssh_config"] == str(Path("x").absolute())
    assert call("remove", "orin").exit_code == 0
    assert [entry["name"] for entry in json.loads(call("list", "--json").stdout)] == ["nano"]


@pytest.mark.parametrize(
    "arguments",
    [("add", "orin", "http://board"), ("add", "local", "ssh://board"), ("remove", "orin"),
     ("check", "orin"), ("check", "ssh://me:secret@board")],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_exit_1(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("compress-deploy: ") and result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


FOUND: dict[str, Any] = {
    "ready": True,
    "problems": [],
    "warnings": ["energy cannot be measured"],
    "environment": {"cpu_model": "Cortex", "architecture": "aarch64", "system": "Linux",
                    "kernel": "5.15", "python": "3.10.12"},
    "board": {
        "model": "NVIDIA Jetson Orin NX", "l4t": "36.4.3", "jetpack": "6.2", "tensorrt": "10.3.0",
        "power_mode": {"name": "15W", "number": 2},
        "clocks": {"cpu": [{"name": "policy0", "now_mhz": 729.6, "min_mhz": 700.0, "max_mhz": 1510.4,
                            "governor": "schedutil"}], "gpu": None, "emc_mhz": 3199.0},
        "thermal": {"temperatures_c": {"cpu": 48.5, "cv0": None}, "slowed_by": ["cpu-throttle"]},
    },
    "runtimes": {"onnxruntime": {"version": "1.31.1", "providers": ["CPUExecutionProvider"]},
                 "tensorrt": {"version": None, "missing": "no"}},
    "memory": {"available_bytes": 3 << 30, "total_bytes": 8 << 30},
    "disk": {"folder": "/data", "free_bytes": 5 << 20},
    "meters": {"ina": {"scope": "the module", "total": ["VDD_IN"], "rails": ["VDD_IN", "VDD_SOC"]},
               "rapl": {"missing": "none here"}},
}  # fmt: skip


def test_check_shows_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(LocalDevice, "check", lambda self, needs: asked.append(needs) or FOUND)
    result = call("check", "local", "--provider", "ort-cpu", "--power")
    assert result.exit_code == 0 and asked == [{"provider": "ort-cpu", "power": True}]
    for words in (
        "NVIDIA Jetson Orin NX", "6.2, L4T 36.4.3", "TensorRT 10.3.0", "15W (number 2)", "730 of 700 to",
        "3199 MHz", "3.0 GiB of 8.0 GiB free", "5 MiB free in /data", "total is VDD_IN; beside it VDD_SOC",
        "cpu 48 °C", "slowed by", "onnxruntime 1.31.1, CPUExecutionProvider", "energy cannot be", "ready",
    ):  # fmt: skip
        assert words in result.stdout
    assert "None" not in result.stdout and "rapl" not in result.stdout
    assert json.loads(call("check", "local", "--json").stdout) == FOUND


def test_check_of_a_device_that_is_not_ready_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = {"ready": False, "problems": ["not installed there: numpy"], "runtimes": {"tensorrt": None},
            "environment": {"python": "3.8.10", "machine": "aarch64"}}  # fmt: skip
    monkeypatch.setattr(LocalDevice, "check", lambda self, needs: bare)
    result = call("check", "local")
    assert result.exit_code == 1
    assert "not installed there: numpy" in result.stdout and "not ready" in result.stdout
    assert call("check", "local", "--json").exit_code == 1


def test_a_device_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LocalDevice, needs: object) -> dict[str, Any]:
        raise DeviceError("local: it burns")

    closed: list[str] = []
    monkeypatch.setattr(LocalDevice, "check", fail)
    monkeypatch.setattr(LocalDevice, "close", lambda self: closed.append(self.name))
    assert call("check", "local").exit_code == 1
    assert closed == ["local"]


def test_a_url_is_checked_when_it_is_added() -> None:
    with pytest.raises(ConfigError, match="passwords are not used"):
        from deploy.devices.url import parse_url

        parse_url("ssh://me:secret@board")
    assert call("list", "--json").stdout.strip() == "[]"


def test_build_goes_to_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def build(self: LocalDevice, folder: Path, settings: dict[str, Any], progress: Any) -> Any:
        asked.append(settings)
        progress("building", 0.5)
        return {"model": "tensorrt", "files": ["engines/a.plan", "engines/a.plan.json"],
                "about": {"runtime": {"flavour": "rtx", "version": "1.7"}, "gpu": None,
                          "plan": {"size_bytes": 1234567}, "build_s": 2.5}}  # fmt: skip

    monkeypatch.setattr(LocalDevice, "build", build)
    monkeypatch.setattr(Bundle, "open", lambda folder: Bundle(folder, {}))
    arguments = [
        "build",
        str(tmp_path),
        "--device",
        "local,ssh://127.0.0.1:1",
        "--opt-batch",
        "4",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert asked[0]["model"] == "tensorrt" and asked[0]["profiles"][0]["opt"] == 4
    assert "engines/a.plan" in result.stdout and "1,234,567" in result.stdout
    assert "compress-deploy: ssh://127.0.0.1:1: " in result.stderr
    shown = CliRunner().invoke(app, ["build", str(tmp_path), "--device", "local", "--json"])
    assert shown.exit_code == 0 and json.loads(shown.stdout)[0]["device"] == "local"
