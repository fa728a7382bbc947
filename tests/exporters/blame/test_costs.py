"""The layer that is at fault loses the signal, and gives most back when it returns to float."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from deploy.errors import DeviceError
from exporters.blame.costs import answer, costs, in_float
from exporters.blame.graph_layers import GraphLayers
from exporters.blame.partings import EQUAL_DB, culprits, partings, snr
from exporters.ort_graph import kernel_report


@pytest.fixture
def model(classifier: Path) -> onnx.ModelProto:
    return onnx.load(classifier)


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 5, (70, 8, 8, 8)).astype(np.float32)


def with_scale(model: onnx.ModelProto, layer: str, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    layers = GraphLayers(copy)
    conv = next(each for each in layers.weighted() if layers.of(each) == layer)
    _, dequantize = layers.weights_of(conv)
    assert dequantize is not None
    scale_O = layers.graph.array(dequantize.input[1]) * np.float32(factor)
    copy.graph.initializer.append(numpy_helper.from_array(scale_O, "fault"))
    dequantize.input[1] = "fault"
    return copy


@pytest.mark.parametrize("layer", ["stem", "first", "second"])
def test_the_layer_with_the_fault_is_the_culprit(
    layer: str, model: onnx.ModelProto, inputs: np.ndarray
) -> None:
    suspect = with_scale(model, layer, -1.0)
    found = partings(model, suspect, inputs[:8])
    assert culprits(found)[0].layer == layer
    before = [each for each in found if each.layer == "x"]
    assert before and all(each.snr_db == EQUAL_DB and each.lost_db == 0 for each in before)

    reference_NC = answer(model, inputs, fused=False)
    ranked = costs(suspect, reference_NC, inputs, trusted=model)
    assert ranked[0].layer == layer
    assert ranked[0].regained > 0 or ranked[0].gained_db > 0
    assert {each.layer for each in ranked} == {
        "x", "stem", "first", "second", "join", "pool", "head",
    }  # fmt: skip


def test_equal_graphs_have_no_culprit(model: onnx.ModelProto, inputs: np.ndarray) -> None:
    found = partings(model, model, inputs[:4])
    assert {each.snr_db for each in found} == {EQUAL_DB}
    assert culprits(found) == []


def test_codes_of_integer_kernels_are_compared_without_parting_them(
    model: onnx.ModelProto, inputs: np.ndarray, tmp_path: Path
) -> None:
    found = partings(model, model, inputs[:4], suspect_fused=True)
    layers = [each.layer for each in found]
    assert layers == ["x", "stem", "first", "second", "join", "pool", "head", "head"]
    assert all(each.snr_db > 30 for each in found)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            watched.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    onnx.save(watched, tmp_path / "watched.onnx")
    assert len(kernel_report(tmp_path / "watched.onnx").require().integer) == 4


def test_a_layer_in_float_has_no_grid_behind_it(model: onnx.ModelProto, inputs: np.ndarray) -> None:
    for layer in ("first", "head"):  # the last pair stands before the graph's output
        alone = in_float(model, layer)
        onnx.checker.check_model(alone)
        codes = answer(alone, inputs, fused=False) / 0.01
        on_grid = bool(np.allclose(codes, np.rint(codes), atol=1e-3))
        assert on_grid == (layer != "head")
    assert differs(answer(in_float(model, "pool"), inputs, False), answer(model, inputs, False))


def differs(one: np.ndarray, two: np.ndarray) -> bool:
    return bool(np.abs(one - two).max() > 0)


def test_costs_count_labels_and_tell_their_progress(
    model: onnx.ModelProto, inputs: np.ndarray
) -> None:
    seen: list[tuple[int, int]] = []
    reference_NC = answer(model, inputs, fused=False)
    labels_N = reference_NC.argmax(axis=1)
    suspect = with_scale(model, "second", -1.0)
    ranked = costs(
        suspect, reference_NC, inputs, labels_N=labels_N, trusted=model, fused=True,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(done, 7) for done in range(1, 8)]
    for each in ranked:
        assert each.top1_points == pytest.approx(100 * each.regained)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.floats(1e-6, 10))
def test_noise_of_a_known_size(values: list[float], share: float) -> None:
    signal = np.array(values)
    if not (signal**2).sum() > 1e-6:
        assert snr(signal, signal) == EQUAL_DB
        return
    wanted = max(-EQUAL_DB, min(EQUAL_DB, -20 * math.log10(share)))
    assert snr(signal, signal * (1 + share)) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_signal(bad: float) -> None:
    one = np.ones(3)
    assert snr(one, np.array([1.0, bad, 1.0])) == -EQUAL_DB
    assert snr(one, np.ones(4)) == -EQUAL_DB
    assert snr(np.zeros(3), one) == -EQUAL_DB


def test_sessions_are_closed_when_the_inputs_do_not_fit(
    model: onnx.ModelProto, sessions: dict[Any, bool]
) -> None:
    wrong = np.zeros((2, 3, 8, 8), np.float32)
    with pytest.raises(DeviceError):
        answer(model, wrong, fused=False)
    with pytest.raises(DeviceError):
        partings(model, model, wrong)
    assert list(sessions.values()) == [False, False]
