"""The baseline quantizer: integer kernels everywhere it can, and decisions that survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.errors import ConfigError, DataError, StorageError
from deploy.sessions.ort import OrtCpuSession
from exporters.ort_graph import kernel_report
from exporters.static_int8 import Method, static_int8


@pytest.fixture
def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(8, 8, 8, 8)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
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


def test_refusals_leave_nothing(float_classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(DataError, match="no batches"):
        static_int8(float_classifier, [], out)
    with pytest.raises(ConfigError, match="unknown 'mse'; choose from"):
        static_int8(float_classifier, [], out, method="mse")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="no such file"):
        static_int8(tmp_path / "absent.onnx", [], out)
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]
