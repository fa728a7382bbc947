"""What every device promises, over every kind of device; and how one is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import Bundle, write_bundle
from deploy.devices.device import Device, find_device
from deploy.devices.inventory import Entry, Inventory
from deploy.devices.local import LocalDevice
from deploy.devices.ssh import SshDevice
from deploy.errors import ConfigError, DeviceError, StorageError

Runner = Callable[[], bytes]


@pytest.fixture(params=["local", "ssh"])
def device(
    request: pytest.FixtureRequest,
    runner: Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Device]:
    made: Device
    if request.param == "local":
        (tmp_path / "temporary").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
        monkeypatch.setattr("tempfile.tempdir", None)
        made = LocalDevice("board", runner=runner)
    else:
        made = request.getfixturevalue("sshd").device(runner)
    yield made
    made.close()


def test_a_record_has_the_place_and_the_request(device: Device, bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    record = device.bench(bundle.folder, {"steps": 2}, lambda *said: told.append(said))
    assert record["status"] == "complete"
    assert record["device"]["name"] == device.name == "board"
    assert record["device"]["kind"] == record["request"]["device_kind"]
    assert record["models"]["student"]["latency_ms"]["n"] == 2
    assert [stage for stage, _ in told if "step" in stage] == ["step 0", "step 1"]
    assert all(0 <= share <= 1 for _, share in told)


@pytest.mark.slow
def test_it_can_be_used_twice_and_closed_twice(device: Device, bundle: Bundle) -> None:
    for steps in (1, 2):
        record = device.bench(bundle.folder, {"steps": steps})
        assert record["models"]["student"]["latency_ms"]["n"] == steps
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="board: the device is closed"):
        device.bench(bundle.folder, {})


def test_a_check_says_whether_it_is_ready(device: Device) -> None:
    found = json.loads(json.dumps(device.check()))
    assert found["ready"] is True and found["problems"] == []
    assert found["device"]["name"] == "board"
    assert set(found) >= {"environment", "board", "runtimes", "memory", "disk", "meters"}


def test_a_check_refuses_what_is_needed_and_not_there(device: Device) -> None:
    found = device.check({"provider": "abacus"})
    assert found["ready"] is False and "there is no 'abacus'" in found["problems"][0]
    with pytest.raises(ConfigError, match=r"board: check: unknown needs \['provder'\]"):
        device.check({"provder": "ort-cpu"})


def test_a_runner_that_dies_is_an_error(device: Device, bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match="board: the runner was killed by signal 9"):
        device.bench(bundle.folder, {"dies": True})


def test_a_damaged_bundle_is_an_error(device: Device, bundle: Bundle) -> None:
    (bundle.folder / "ort-cpu.onnx").unlink()
    with pytest.raises(StorageError, match="ort-cpu.onnx is missing"):
        device.bench(bundle.folder, {})


def test_an_engine_that_cannot_be_built_is_an_error(device: Device, bundle: Bundle) -> None:
    before = (bundle.folder / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="board: .*no model for target 'tensorrt'"):
        device.build(bundle.folder, {"model": "tensorrt"})
    assert (bundle.folder / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_an_engine_is_built_there_and_added_here(device: Device, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds engines without a GPU; not installed")
    made = engine_bundle(tmp_path)
    built = device.build(
        made.folder, {"model": "tensorrt", "precision": "float32", "runtime": "rtx"}
    )
    assert built["model"] == "tensorrt" and built["about"]["plan"]["size_bytes"] > 0
    grown = Bundle.open(made.folder)
    added = set(grown.manifest["files"]) - set(made.manifest["files"])
    assert added == set(built["files"])
    assert sorted(Path(name).suffix for name in added) == [".json", ".plan"]


def engine_bundle(folder: Path) -> Bundle:
    """A bundle whose ``tensorrt`` model is one convolution."""
    weights = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["y"]),
        helper.make_node("Flatten", ["y"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "one",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 3, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])],
        [weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "one.onnx")
    return write_bundle(
        folder / "engines",
        name="one",
        targets={"tensorrt": folder / "one.onnx"},
        input_name="images",
        input_shape=(1, 3, 3),
        output_name="logits",
        classes=("a", "b"),
        mean=(0.5,),
        std=(0.25,),
        sample_inputs=np.zeros((1, 1, 3, 3), np.uint8),
        sample_outputs=np.zeros((1, 2), np.float32),
        recipe={},
        seeds={},
        versions={},
    )


def test_local_and_urls_need_no_inventory(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "devices.json")
    assert isinstance(find_device("local", inventory), LocalDevice)
    found = find_device("ssh://me@board:2222", inventory)
    assert isinstance(found, SshDevice) and found.name == "ssh://me@board:2222"


def test_a_name_is_looked_up(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "devices.json")
    inventory.add(
        Entry("orin", "ssh://me@board", python="/opt/python", folder="/data", jump="gate")
    )
    found = find_device("orin", inventory)
    assert isinstance(found, SshDevice) and found.name == "orin"
    assert {"-J", "gate", "-l", "me", "board"} <= set(found._arguments)
    with pytest.raises(DeviceError, match="device 'orim' is not known; did you mean 'orin'"):
        find_device("orim", inventory)


@pytest.mark.parametrize(
    "url",
    ["http://board", "ssh://", "ssh://board/path", "ssh://board:port", "ssh://board:99999",
     "ssh://me:secret@board", "ssh://-oProxyCommand=x", "ssh://-l@board"],
)  # fmt: skip
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"give ssh://\[user@\]host\[:port\]") as caught:
        find_device(url)
    assert "secret" not in str(caught.value)


def test_a_url_may_hold_an_address_of_version_6() -> None:
    device: Any = find_device("ssh://[fe80::1]:22")
    assert device._arguments[-2:] == ["--", "fe80::1"]
