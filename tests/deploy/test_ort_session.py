"""The contract of a session, run over every implementation, and ONNX Runtime's own settings."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.cpu import Cpu
from deploy.errors import CompressDeployError, DeviceError, MissingDependency, StorageError
from deploy.sessions.ort import OrtCpuSession
from deploy.sessions.session import Port

W_IO = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x @ W, dynamic batch."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(W_IO, "w")])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


SESSIONS = [OrtCpuSession]


@pytest.mark.parametrize("kind", SESSIONS)
class TestContract:
    def test_describes_its_ports(self, kind: type, model: Path) -> None:
        session = kind(model)
        assert session.name == "linear"
        assert session.inputs == (Port("x", (None, 3), "float32"),)
        assert session.outputs == (Port("y", (None, 4), "float32"),)

    @pytest.mark.parametrize("rows", [1, 5])
    def test_runs(self, kind: type, model: Path, rows: int) -> None:
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        result = kind(model).run({"x": x})
        assert list(result) == ["y"]
        np.testing.assert_allclose(result["y"], x @ W_IO, rtol=1e-5, atol=1e-5)

    def test_refuses_wrong_feeds_in_one_line(self, kind: type, model: Path) -> None:
        session = kind(model)
        for feeds in ({}, {"z": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 2), np.float32)},
                      {"x": np.ones((1, 3))}):  # fmt: skip
            with pytest.raises(CompressDeployError, match="the model takes") as refused:
                session.run(feeds)
            assert "\n" not in str(refused.value)

    def test_closed_is_closed(self, kind: type, model: Path) -> None:
        session = kind(model)
        session.close()
        session.close()
        with pytest.raises(DeviceError, match="closed"):
            session.run({"x": np.ones((1, 3), np.float32)})

    def test_refuses_bad_files(self, kind: type, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="no such file"):
            kind(tmp_path / "absent.onnx")
        (tmp_path / "bad.onnx").write_bytes(b"\x08\x08 no model")
        with pytest.raises(DeviceError, match="cannot load it") as refused:
            kind(tmp_path / "bad.onnx")
        assert "\n" not in str(refused.value)


def test_missing_runtime_names_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        OrtCpuSession(model)


def test_another_provider_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["Other"])
    with pytest.raises(DeviceError, match=r"asked for CPUExecutionProvider and got \['Other'\]"):
        OrtCpuSession(model)


def test_threads_must_be_positive(model: Path) -> None:
    assert OrtCpuSession(model, 2).threads == 2
    with pytest.raises(DeviceError, match="threads is 0"):
        OrtCpuSession(model, 0)


VNNI = Cpu("a", "x86_64", frozenset({"avx2", "avx_vnni"}))
OLD = Cpu("b", "x86_64", frozenset({"avx2"}))


def test_a_processor_that_saturates_gets_exact_kernels(model: Path) -> None:
    key = "session.x64quantprecision"
    assert key not in OrtCpuSession(model, cpu=VNNI).settings
    assert OrtCpuSession(model, cpu=OLD).settings[key] == "1"
    assert key not in OrtCpuSession(model, cpu=OLD, disable_fusion=True).settings


def test_spinning_is_recorded(model: Path) -> None:
    for spin in (True, False):
        settings = OrtCpuSession(model, spin=spin).settings
        assert settings["session.intra_op.allow_spinning"] == str(int(spin))


def test_optimized_graph_and_fusion_switch(tmp_path: Path) -> None:
    """Fused, the graph holds QGemm; as the simulated reference it keeps every Q/DQ pair."""
    grid = [numpy_helper.from_array(np.float32(0.05), "s"),
            numpy_helper.from_array(np.uint8(128), "z"),
            numpy_helper.from_array(np.int8(0), "wz")]  # fmt: skip
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
             helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
             helper.make_node("DequantizeLinear", ["wq", "s", "wz"], ["wd"]),
             helper.make_node("Gemm", ["xd", "wd"], ["h"]),
             helper.make_node("QuantizeLinear", ["h", "s", "z"], ["hq"]),
             helper.make_node("DequantizeLinear", ["hq", "s", "z"], ["y"])]  # fmt: skip
    weights = numpy_helper.from_array(W_IO.astype(np.int8), "wq")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [*grid, weights])
    opset = [helper.make_opsetid("", 17)]
    path, out = tmp_path / "q.onnx", tmp_path / "optimized.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))

    def operators(disable_fusion: bool) -> set[str]:
        OrtCpuSession(path, disable_fusion=disable_fusion, optimized_model_path=out).close()
        return {node.op_type for node in onnx.load(str(out)).graph.node}

    assert "QGemm" in operators(False)
    assert "QGemm" not in operators(True)
    feeds = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}
    fused = OrtCpuSession(path).run(feeds)["y"]
    simulated = OrtCpuSession(path, disable_fusion=True).run(feeds)["y"]
    assert np.abs(fused - simulated).max() <= 0.05 * 1.001
