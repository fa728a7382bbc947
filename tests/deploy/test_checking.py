"""Whether a machine is fit: what refuses, what warns, and that both say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.checking import check, require
from deploy.errors import DeviceError

Files = Callable[[Path, Mapping[str, str]], None]


def runtimes(**versions: str) -> Callable[[str], Any]:
    def find(name: str) -> Any:
        if name not in versions:
            raise ImportError(f"No module named {name!r}")
        module = SimpleNamespace(__version__=versions[name])
        if name == "onnxruntime":
            module.get_available_providers = lambda: ["CPUExecutionProvider"]
        return module

    return find


def test_every_board_is_ready_for_power(every_board: tuple[Path, Any], tmp_path: Path) -> None:
    root, truth = every_board
    found = check(
        root,
        folder=tmp_path,
        provider="ort-cpu",
        power=True,
        find_runtime=runtimes(onnxruntime="1.18"),
    )
    assert found["ready"], found["problems"]
    require(found)
    assert json.loads(json.dumps(found)) == found
    assert found["board"]["model"] == truth.model
    assert found["meter"]["name"] == "ina"
    assert found["meters"]["rapl"]["missing"]
    assert found["memory"]["available_bytes"] == 4_000_000 * 1024
    assert any("sudo jetson_clocks" in warning for warning in found["warnings"])


def test_what_is_missing_refuses_with_the_reason(tmp_path: Path) -> None:
    found = check(tmp_path, provider="tensorrt", power=True, find_runtime=runtimes())
    assert not found["ready"]
    with pytest.raises(DeviceError, match="not ready: tensorrt: .*No module named") as caught:
        require(found)
    assert "no energy: power: no sensor" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_power_a_missing_sensor_is_a_warning(tmp_path: Path) -> None:
    found = check(tmp_path, find_runtime=runtimes(tensorrt_rtx="1.7"))
    assert found["ready"]
    assert any("no energy" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (
            "ort-cuda",
            "this onnxruntime 1.18 has no CUDAExecutionProvider, only CPUExecutionProvider",
        ),
        ("tensorrt", "No module named 'tensorrt'"),
        ("coreml", "there is no 'coreml'; choose from ort-cpu, ort-cuda"),
    ],
)
def test_providers_that_are_not_here(tmp_path: Path, provider: str, reason: str) -> None:
    found = check(tmp_path, provider=provider, find_runtime=runtimes(onnxruntime="1.18"))
    assert len(found["problems"]) == 1
    assert reason in found["problems"][0]


def test_a_board_is_told_which_python_has_its_tensorrt(fake_board: Callable[..., Any]) -> None:
    root, _ = fake_board("orin-nano")
    (problem,) = check(root, provider="tensorrt", find_runtime=runtimes())["problems"]
    assert "JetPack 6.2 brings TensorRT 10.3 for Python 3.10" in problem


def test_no_runtime_at_all(tmp_path: Path) -> None:
    (problem,) = check(tmp_path, find_runtime=runtimes())["problems"]
    assert problem.startswith("no runtime can be imported")


def test_a_runtime_that_breaks_on_import(tmp_path: Path) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open\nshared object file")

    found = check(tmp_path, find_runtime=broken)
    assert found["runtimes"]["tensorrt"]["missing"] == (
        "tensorrt: libnvinfer.so.10: cannot open shared object file"
    )


def test_memory_is_short(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("nano")
    write_files(root, {"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 2000 kB\n"})
    (problem,) = check(root, find_runtime=runtimes(onnxruntime="1.18"))["problems"]
    assert problem.startswith("memory: 2048000 bytes are free, 33554432 are needed")


def test_a_hot_and_locked_board(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("orin-nano")
    policy, gpu = "sys/devices/system/cpu/cpufreq/policy0", "sys/class/devfreq/17000000.gpu"
    write_files(
        root,
        {
            f"{policy}/scaling_min_freq": "1510400\n",
            f"{gpu}/min_freq": "918000000\n",
            "sys/class/thermal/thermal_zone0/temp": "95000\n",
            "sys/class/thermal/cooling_device1/cur_state": "1\n",
        },
    )
    warnings = check(root, find_runtime=runtimes(onnxruntime="1.18"))["warnings"]
    assert not any("jetson_clocks" in warning for warning in warnings)
    assert "cpu-thermal is at 95 °C, close to its trip at 99 °C; let it cool" in warnings
    assert "cpu-throttle-alert (cooling_device1) is slowed down against heat" in warnings


def test_this_machine() -> None:
    found = check(provider="ort-cpu")
    assert found["runtimes"]["onnxruntime"]["version"]
    assert json.loads(json.dumps(found)) == found
