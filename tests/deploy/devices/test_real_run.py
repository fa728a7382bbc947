"""A bundle that is really measured, by the packed runner as it is, here and over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.records.record import validate
from deploy.bundle import Bundle, write_bundle
from deploy.devices.device import Device
from deploy.devices.fleet import run_fleet
from deploy.devices.local import LocalDevice
from deploy.sessions.ort import OrtCpuSession

pytestmark = pytest.mark.slow

REQUEST = {"profile": "quick", "queries": 50, "duration_s": 0.1, "layers": False}


def convolution(path: Path, channels: int) -> Path:
    rng = np.random.default_rng(channels)
    constants = {
        "w": rng.normal(size=(channels, 3, 3, 3)).astype(np.float32),
        "g": rng.normal(size=(4, channels)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def real_bundle(tmp_path: Path) -> Bundle:
    student = convolution(tmp_path / "student.onnx", 4)
    inputs = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), np.uint8)
    feeds = {"images": (inputs.astype(np.float32) / 255 - 0.5) / 0.25}
    return write_bundle(
        tmp_path / "real",
        name="real",
        targets={"ort-cpu": student},
        files={"teacher.onnx": convolution(tmp_path / "teacher.onnx", 64)},
        input_name="images",
        input_shape=(3, 8, 8),
        output_name="logits",
        classes=tuple("abcd"),
        mean=(0.5,),
        std=(0.25,),
        sample_inputs=inputs,
        sample_outputs=OrtCpuSession(student).run(feeds)["logits"],
        recipe={},
        seeds={},
        versions={},
    )


def test_here_and_over_ssh_the_same_is_measured(
    sshd: Any, real_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    devices: list[Device] = [LocalDevice(), sshd.device()]
    told: dict[str, list[str]] = {device.name: [] for device in devices}

    def work(device: Device) -> dict[str, Any]:
        return device.bench(
            real_bundle.folder, REQUEST, lambda stage, share: told[device.name].append(stage)
        )

    here, there = run_fleet(devices, work)
    for outcome in (here, there):
        assert outcome.result is not None, outcome.error
        validate(outcome.result, outcome.device)
        assert outcome.result["device"]["name"] == outcome.device
        assert outcome.result["bundle"]["name"] == "real"
        assert all(model["latency_ms"]["n"] >= 50 for model in outcome.result["models"].values())
        assert "single-stream" in told[outcome.device]
    assert here.result is not None and there.result is not None
    assert here.result["modes"] == there.result["modes"]
    hashes = [
        {name: model["sha256"] for name, model in each["models"].items()}
        for each in (here.result, there.result)
    ]
    assert hashes[0] == hashes[1] and set(hashes[0]) == {"teacher", "student"}
    assert {here.result["device"]["kind"], there.result["device"]["kind"]} == {"local", "ssh"}
