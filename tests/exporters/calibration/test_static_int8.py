"""The baseline quantizer: integer kernels everywhere it can, and decisions that survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from deploy.engines.importer import import_onnx
from deploy.errors import ConfigError, DataError, DeviceError, StorageError
from deploy.sessions.ort import OrtCpuSession
from exporters.calibration.mse_ranges import best_range, mse_ranges
from exporters.calibration.static_int8 import Method, static_int8
from exporters.ort_graph import kernel_report


@pytest.fixture
def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(8, 8, 8, 8)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_quantizes_every_layer(
    float_classifier: Path, batches: list[np.ndarray], tmp_path: Path, method: Method
) -> None:
    out = static_int8(float_classifier, iter(batches), tmp_path / "int8.onnx", method=method)
    report = kernel_report(out).require()
    assert [layer.kernel for layer in report.integer] == ["QLinearConv"] * 3 + ["QGemm"]
    weights = {init.name: init for init in onnx.load(str(out)).graph.initializer}
    assert sum(init.data_type == onnx.TensorProto.INT8 and init.dims[:] != []
               and len(init.dims) == 4 for init in weights.values()) == 3  # fmt: skip
    feeds = {"x": np.concatenate(batches)}
    (want,) = OrtCpuSession(float_classifier).run(feeds).values()
    (got,) = OrtCpuSession(out).run(feeds).values()
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]


OLD = """<ir_version: 7, opset_import: ["" : OPSET]>
old (float[N,2,4,4] x) => (float[N,3,4,4] y) <float[3,2,1,1] w = {1,2,3,4,5,6}> { y = TAIL }"""


def test_a_file_from_before_scales_per_channel_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "old.onnx"
    batch = np.random.default_rng(0).normal(size=(4, 2, 4, 4)).astype(np.float32)
    for opset in (9, 11, 12):
        text = OLD.replace("OPSET", str(opset)).replace("TAIL", "Conv(x, w)")
        onnx.save(onnx.parser.parse_model(text), file)
        out = static_int8(file, [batch], tmp_path / "int8.onnx")
        (want,) = OrtCpuSession(file).run({"x": batch}).values()
        (got,) = OrtCpuSession(out).run({"x": batch}).values()
        assert np.abs(want - got).max() < 0.02 * np.abs(want).max()
        assert kernel_report(out).require().integer


def test_a_file_that_cannot_be_raised(tmp_path: Path) -> None:
    text = OLD.replace("OPSET", "11").replace("TAIL", "Wibble(x, w)")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "old.onnx")
    with pytest.raises(StorageError, match="opset 11 cannot be raised to 13") as caught:
        static_int8(tmp_path / "old.onnx", [np.zeros((1, 2, 4, 4))], tmp_path / "int8.onnx")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]


def test_refusals_leave_nothing(float_classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(DataError, match="no batches"):
        static_int8(float_classifier, [], out)
    with pytest.raises(ConfigError, match="unknown 'best'; choose from"):
        static_int8(float_classifier, [], out, method="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="grid: unknown 'gpu'"):
        static_int8(float_classifier, [], out, grid="gpu")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="no such file"):
        static_int8(tmp_path / "absent.onnx", [], out)
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_the_grid_of_tensorrt_is_what_its_importer_takes(
    float_classifier: Path, batches: list[np.ndarray], tmp_path: Path, method: Method
) -> None:
    out = tmp_path / "int8.onnx"
    static_int8(float_classifier, iter(batches), out, method=method, grid="tensorrt")
    model = onnx.load(str(out))
    constants = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
            assert (constants[node.input[1]] > 0).all()
    feeds = {"x": np.concatenate(batches)}
    (want,) = OrtCpuSession(float_classifier).run(feeds).values()
    (got,) = OrtCpuSession(out, disable_fusion=True).run(feeds).values()
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()
    pytest.importorskip("tensorrt_rtx", reason="NVIDIA's importer is not installed")
    found = import_onnx(out)
    assert found, found.problems


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_rare_is_cut_off_and_what_is_not_is_kept(symmetric: bool) -> None:
    """A million values within four of zero, and one at twelve."""
    edges = np.linspace(-12, 12, 2049)
    middle = (edges[:-1] + edges[1:]) / 2
    counts = 1e6 * np.exp(-(middle**2) / 2) * (edges[1] - edges[0]) / np.sqrt(2 * np.pi)
    counts[-1] = 1
    low, high = best_range(counts, -12.0, 12.0, symmetric=symmetric)
    assert 4 < high < 11 and -11 < low < -4
    flat = np.ones(2048)
    assert best_range(flat, -12.0, 12.0, symmetric=symmetric) == pytest.approx((-12, 12), rel=0.02)


def test_mse_ranges_are_those_of_the_file(
    float_classifier: Path, batches: list[np.ndarray], tmp_path: Path
) -> None:
    """The scale of the input is the one that its histogram asks for."""
    out = static_int8(
        float_classifier, iter(batches), tmp_path / "int8.onnx", method="mse", grid="tensorrt"
    )
    values = np.concatenate(batches)
    low, high = float(values.min()), float(values.max())
    counts = np.histogram(values, 2048, (low, high))[0]
    wanted = best_range(counts, low, high, symmetric=True)[1]
    model = onnx.load(str(out))
    constants = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    quantize = next(node for node in model.graph.node if node.input[0] == "x")
    assert constants[quantize.input[1]].item() == pytest.approx(wanted / 127.5, rel=0.01)


@given(st.integers(0, 999), st.booleans(), st.floats(0.1, 100))
def test_no_other_share_of_the_range_is_better(seed: int, symmetric: bool, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = scale * rng.standard_t(2, size=500) + scale * rng.normal()
    low, high = values.min(), values.max()
    counts, edges = np.histogram(values, 256, (low, high))
    middle = (edges[:-1] + edges[1:]) / 2
    got = best_range(counts, low, high, symmetric=symmetric)

    def error(low: float, high: float) -> float:
        """By search over the grid's values, not by rounding."""
        step = (high - low) / (254 if symmetric else 255)
        first = -127 if symmetric else round(low / step)
        grid = step * (first + np.arange(255 if symmetric else 256))
        return float((counts * np.abs(middle[:, None] - grid).min(axis=1) ** 2).sum())

    edge = max(abs(low), abs(high))
    whole = (-edge, edge) if symmetric else (min(low, 0.0), max(high, 0.0))
    for share in (0.25, 0.5, 0.75, 1.0):
        assert error(*got) <= error(share * whole[0], share * whole[1]) * (1 + 1e-9)
    assert got[0] <= 0 <= got[1]
    assert not symmetric or got[0] == -got[1]


def test_the_session_is_closed_when_a_batch_does_not_fit(
    float_classifier: Path, sessions: dict[Any, bool]
) -> None:
    with pytest.raises(DeviceError):
        mse_ranges(float_classifier, [np.zeros((2, 3, 8, 8), np.float32)], symmetric=True)
    assert list(sessions.values()) == [False]
