"""What the report stage leaves behind when it fails half-way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy.bundle import write_bundle
from deploy.errors import DataError, DeviceError, VerificationError
from toolchain.runs.artifacts import Artifact
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


@pytest.mark.parametrize(
    ("steps", "notes"),
    [
        ([{"dean.fallback": 0.0, "dean.moved": 1.0, "dean.judged": 1.0}], []),
        (
            [
                {"dean.fallback": 0.0, "dean.moved": 1.0, "dean.judged": 1.0},
                {"dean.fallback": 1.0, "dean.moved": 1.0, "dean.judged": 1.0},
            ],
            [
                "at the end 100% of the dean's strengths were the recipe's, for want of evidence that "
                "moving them helps"
            ],
        ),
        (
            [{"dean.fallback": 0.0, "dean.moved": 0.0, "dean.judged": 0.0}],
            ["the dean never moved a strength from the recipe's: too few probes to judge it"],
        ),
        (
            [{"dean.fallback": 0.0, "dean.moved": 0.0, "dean.judged": 1.0}],
            [
                "the dean never moved a strength from the recipe's: no evidence that moving one helps"
            ],
        ),
        ([{"strength.kl": 0.5}], []),
    ],
)
def test_a_reader_is_told_of_a_dean_that_was_not_to_be_trusted(
    steps: list[dict[str, float]], notes: list[str], tmp_path: Path
) -> None:
    rows = [{"kind": "trail", "step": n, **numbers} for n, numbers in enumerate(steps, 1)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "training.metrics.jsonl").write_text(lines)
    made = Artifact(tmp_path, "k", "recover", {})
    assert reporting.notes_on_teaching(made) == [f"recover: {note}" for note in notes]
