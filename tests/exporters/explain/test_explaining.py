"""The kernels of a file, matched with its layers, with MACs counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import DeviceError, StorageError
from exporters.explain.explaining import Explanation, explain
from exporters.explain.machine_limits import Machine, measure_machine

MACHINE = Machine(1, ((1 << 26, 1e11),), 3.0, 0.2, 0.8, 0.4, 4e11, 1e11)


def explained(path: Path, batch: int = 1, shape: tuple[int, ...] = (8, 8, 8)) -> Explanation:
    feeds = {"x": np.zeros((batch, *shape), np.float32)}
    return explain(path, feeds, machine=MACHINE, at_least=5, at_least_s=0)


def test_integer_kernels_are_matched_and_counted(classifier: Path) -> None:
    found = explained(classifier, batch=3)
    by_layer = {kernel.layer: kernel.facts for kernel in found.kernels if kernel.facts.macs}
    conv = 3 * 8 * 8 * 8 * 8 * 9
    assert {name: facts.macs for name, facts in by_layer.items()} == {
        "stem": conv, "first": conv, "second": conv, "head": 3 * 8 * 4,
    }  # fmt: skip
    assert all(facts.integer for facts in by_layer.values())
    assert found.macs == 3 * conv + 3 * 8 * 4
    assert by_layer["first"].channels == (8, 8)
    assert by_layer["stem"].first and not by_layer["first"].first
    # 3 x 8 x 8 x 8 codes in, as many out, and the weights of one byte each.
    assert by_layer["first"].bytes == 2 * 3 * 512 + 8 * 8 * 9
    assert {kernel.layer for kernel in found.kernels} >= {"join", "pool"}
    assert not [kernel for kernel in found.kernels if kernel.cause.kind == "float leftover"]
    assert sum(share for _, share, _ in found.by_cause()) == pytest.approx(1)
    assert sum(count for _, _, count in found.by_cause()) == len(found.kernels)
    times = [kernel.facts.time_us for kernel in found.by_time()]
    assert times == sorted(times, reverse=True)
    assert sum(found.layer_us().values()) == pytest.approx(sum(times))
    record = json.loads(json.dumps(found.to_dict()))
    assert record["batch"] == 3 and len(record["kernels"]) == len(found.kernels)


def test_a_float_leftover_has_the_reason(save: Callable[..., Path]) -> None:
    path = save(lambda graph, x: graph.op("Relu", graph.conv(x, name="left"), name="end"))
    found = explained(path)
    (left,) = [kernel for kernel in found.kernels if kernel.cause.kind == "float leftover"]
    assert left.layer == "left"
    assert "output of the graph" in left.cause.why
    assert left.facts.macs == 8 * 8 * 8 * 8 * 9


def test_a_float_file_has_kernels_of_fused_layers_and_no_leftovers(float_classifier: Path) -> None:
    found = explained(float_classifier)
    kinds = {kernel.cause.kind for kernel in found.kernels}
    assert "float leftover" not in kinds
    assert "reformat" in kinds
    assert found.macs == 8 * 64 * 8 * 9 + 16 * 16 * 8 * 9 + 16 * 16 * 16 * 9 + 16 * 4


def test_groups_divide_the_channels(save: Callable[..., Path], tmp_path: Path) -> None:
    def depthwise(graph: Any, x: str) -> str:
        weights = graph.weights(graph.rng.normal(size=(8, 1, 3, 3)).astype(np.float32))
        y = graph.op("Conv", x, weights, name="dw", group=8, kernel_shape=[3, 3], pads=[1] * 4)
        return graph.pair(y, 0.02, 128)

    found = explained(save(depthwise))
    facts = next(kernel.facts for kernel in found.kernels if kernel.layer == "dw")
    assert (facts.macs, facts.channels, facts.groups) == (8 * 64 * 9, (1, 1), 8)


def test_what_is_no_model_is_refused(classifier: Path, tmp_path: Path) -> None:
    whole = classifier.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="not a whole ONNX model|holds a graph of"):
        explained(tmp_path / "cut.onnx")
    with pytest.raises(DeviceError, match="refused the inputs"):
        explained(classifier, shape=(3, 8, 8))


def test_limits_of_this_machine_are_positive_and_ordered() -> None:
    machine = measure_machine()
    assert [size for size, _ in machine.bandwidth] == sorted(size for size, _ in machine.bandwidth)
    rates = (machine.int8_macs_per_s, machine.float_macs_per_s, machine.call_us)
    assert all(rate > 0 for rate in rates)
    assert json.loads(json.dumps(machine.to_dict()))["threads"] == 1
