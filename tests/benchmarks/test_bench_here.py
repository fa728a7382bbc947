"""Whole runs on this machine: a model equals itself, one that works 5 % more is slower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.bench import Request, run_bench
from deploy.bundle import Bundle, write_bundle
from deploy.sessions.ort import OrtCpuSession
from deploy.sessions.session import Feeds, Port

RUNS = 100


class Repeating:
    """A session that runs its model several times per call: 21 times for 20 is 5 % more."""

    def __init__(self, path: Path, name: str, times: int) -> None:
        self._session, self._times = OrtCpuSession(path, name=name), times

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._session.outputs

    def run(self, feeds: Feeds) -> Feeds:
        for _ in range(self._times - 1):
            self._session.run(feeds)
        return self._session.run(feeds)

    def close(self) -> None:
        self._session.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("here")
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(16, 16, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=(16, 2, 3, 3)).astype(np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 8, 8])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 16])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    inputs = rng.integers(0, 256, (4, 2, 8, 8), dtype=np.uint8)
    outputs = OrtCpuSession(path).run({"x": inputs.astype(np.float32) / np.float32(255)})
    return write_bundle(
        folder / "bundle", name="net", targets={"ort-cpu": path}, input_name="x",
        input_shape=(2, 8, 8), output_name="logits", classes=[str(n) for n in range(16)],
        mean=(0.0, 0.0), std=(1.0, 1.0), sample_inputs=inputs, sample_outputs=outputs["logits"],
        recipe={}, seeds={}, versions={}, files={"teacher.onnx": path},
    )  # fmt: skip


def speedup(bundle: Bundle, seed: int, **times: int) -> dict[str, Any]:
    def opener(bundle: Bundle, model: str, **_: Any) -> Repeating:
        return Repeating(bundle.folder / "ort-cpu.onnx", model, times[model])

    request = Request(profile="quick", duration_s=0.3, queries=64, layers=False, seed=seed)
    made: dict[str, Any] = run_bench(bundle, request, opener=opener)["speedup"]
    return made


@pytest.mark.slow
def test_a_model_against_itself(bundle: Bundle) -> None:
    equal = 0
    for seed in range(RUNS):
        low, high = speedup(bundle, seed, teacher=20, student=20)["interval95"]
        equal += low <= 1 <= high
    assert equal >= 0.9 * RUNS


@pytest.mark.slow
def test_five_percent_slower_is_found(bundle: Bundle) -> None:
    found = 0
    for seed in range(RUNS):
        found += speedup(bundle, seed, teacher=20, student=21)["interval95"][1] < 1
    assert found >= 0.9 * RUNS
