"""What the report stage leaves behind when it fails half-way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy.bundle import write_bundle
from deploy.errors import DataError, DeviceError, VerificationError
from toolchain.shipping import reporting
from toolchain.shipping.exporting import BUNDLE
from toolchain.stages import Report


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """An export: a student and a teacher that both answer with their input."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["logits"])],
        "same",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 2, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
    )
    path = tmp_path / "same.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    images_u8 = np.array([[[[255]], [[0]]], [[[0]], [[255]]]], np.uint8)
    write_bundle(
        tmp_path / "source" / BUNDLE, name="same", targets={"ort-cpu": path},
        input_name="images", input_shape=(2, 1, 1), output_name="logits", classes=["a", "b"],
        mean=(0.0, 0.0), std=(1.0, 1.0), sample_inputs=images_u8,
        sample_outputs=images_u8.reshape(2, 2) / np.float32(255), recipe={}, seeds={},
        versions={}, files={"teacher.onnx": path},
    )  # fmt: skip
    return SimpleNamespace(root=tmp_path / "source")


def failing(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("where", "error", "opened"),
    [
        ("Bundle.verify_samples", VerificationError("other answers"), 1),
        ("accuracy.evaluate", DataError("no images"), 2),
        ("latency.measure_interleaved", DeviceError("out of memory"), 5),
    ],
)
def test_every_session_is_closed_wherever_it_fails(
    where: str,
    error: Exception,
    opened: int,
    source: Any,
    sessions: dict[Any, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "data_of", lambda ctx: SimpleNamespace(test=None))
    monkeypatch.setattr(reporting, "numpy_batches", lambda data, part: iter(()))
    found = SimpleNamespace(top1=100.0)
    monkeypatch.setattr(reporting.accuracy, "evaluate", lambda *_: found)
    owner, name = where.split(".")
    monkeypatch.setattr(getattr(reporting, owner), name, failing(error))
    ctx: Any = SimpleNamespace(recipe=None)
    with pytest.raises(type(error)):
        reporting.report(Report(), source, tmp_path / "out", ctx)
    assert list(sessions.values()) == [False] * opened
