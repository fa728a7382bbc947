"""Layers of a profile: names, warm-up, shares, and what the profiler itself adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from benchmarks.timing.layer_times import (
    LayerTime,
    layers_of,
    measure_layers,
    profile_layers,
    relieve,
    source_name,
)
from deploy.errors import ConfigError, DeviceError, StorageError


def event(name: str, dur: int, index: int = 0, kernel: str = "Conv") -> dict[str, object]:
    args = {"op_name": kernel, "node_index": str(index), "parameter_size": "12"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": args}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(8, 8, 3, 3)).astype(np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Softplus", ["a"], ["b"], "bend"),
        helper.make_node("Conv", ["b", "w1"], ["y"], "second", pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    path = tmp_path / "two.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def test_a_real_profile_holds_the_layers_and_adds_up(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    feeds = {"x": np.zeros((3, 8, 8, 8), np.float32)}
    profile = profile_layers(model, feeds, at_least=25, progress=lambda *at: seen.append(at))
    assert [layer.kernel for layer in profile.layers].count("Conv") == 2
    bend = next(layer for layer in profile.layers if layer.op_type == "Softplus")
    assert bend.name in ("bend", "b")  # ONNX Runtime may name it after what it writes
    # Three blocks of at most ten calls, each after one that is not timed but stamped.
    assert {layer.calls for layer in profile.layers} == {25 + 3}
    assert seen[-1] == (25, 25)
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1)
    assert all(layer.time_us >= 0 for layer in profile.layers)
    assert profile.call_us > 0 and profile.profiled_call_us > 0
    assert bend.output_bytes == 3 * 8 * 8 * 8 * 4
    assert json.loads(json.dumps(profile.to_dict()))["layers"][0]["name"]
    assert not [path for path in model.parent.iterdir() if path != model]


def test_measure_layers_lists_them(model: Path) -> None:
    layers = measure_layers(model, {"x": np.zeros((1, 8, 8, 8), np.float32)}, at_least=5)
    assert "Softplus" in {layer.op_type for layer in layers}


def test_warm_up_is_dropped_and_outliers_do_not_count() -> None:
    slow = [event("a", 9000)] * 3
    usual = [event("a", 4)] * 20
    (layer,) = layers_of(slow + usual, warm_up=3)
    assert (layer.calls, layer.time_us) == (20, 4.5)
    (with_outlier,) = layers_of([*usual, event("a", 9000)])
    assert with_outlier.time_us == 4.5


def test_two_kernels_of_one_name_are_two_layers() -> None:
    events = [event("Transpose", 2, 1, "Transpose"), event("Transpose", 5, 2, "Transpose")]
    assert [layer.time_us for layer in layers_of(events)] == [2.5, 5.5]


@pytest.mark.parametrize(
    ("kernel", "operator"),
    [("QLinearConv", "Conv"), ("QGemm", "Gemm"), ("FusedConv", "Conv"), ("Conv", "Conv"),
     ("QuantizeLinear", "QuantizeLinear"), ("QLinearGlobalAveragePool", "GlobalAveragePool")],
)  # fmt: skip
def test_operator_of_a_kernel(kernel: str, operator: str) -> None:
    assert layers_of([event("a", 1, kernel=kernel)])[0].op_type == operator


def test_a_kernel_without_a_name_gets_one() -> None:
    assert layers_of([event("", 1, 7, "Relu")])[0].name == "Relu_7"
    assert source_name("conv_token_1_nchwc") == "conv"


@given(stamped=st.lists(st.floats(0.5, 1e4), min_size=1, max_size=30), call_us=st.floats(0.1, 1e5))
def test_what_profiling_adds_is_taken_off_alike(stamped: list[float], call_us: float) -> None:
    raw = [LayerTime("a", "Conv", "Conv", us, 0.0, us) for us in stamped]
    layers, stamp_us = relieve(raw, call_us)
    assert 0 <= stamp_us <= min(stamped)
    assert all(0 <= layer.time_us <= layer.stamped_us for layer in layers)
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    total_us = sum(layer.time_us for layer in layers)
    if sum(stamped) <= call_us:  # nothing in excess, nothing taken
        assert stamp_us == 0
        assert total_us == pytest.approx(sum(stamped))
    else:
        assert total_us == pytest.approx(call_us) or total_us == 0


def test_what_cannot_be_measured_is_said(model: Path, tmp_path: Path) -> None:
    feeds = {"x": np.zeros((1, 8, 8, 8), np.float32)}
    with pytest.raises(ConfigError, match="at_least is 0"):
        measure_layers(model, feeds, at_least=0)
    with pytest.raises(StorageError, match="no such file"):
        measure_layers(tmp_path / "none.onnx", feeds)
    with pytest.raises(DeviceError, match="refused the inputs"):
        measure_layers(model, {"x": np.zeros((1, 3, 8, 8), np.float32)}, at_least=1)
    with pytest.raises(DeviceError, match="holds no kernel"):
        layers_of([])


def test_the_session_is_closed_when_half_way_something_fails(
    model: Path, sessions: dict[Any, bool]
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_layers(model, {"x": np.zeros((1, 8, 8, 8), np.float32)}, progress=stop)
    with pytest.raises(DeviceError):
        measure_layers(model, {"x": np.zeros((1, 9, 8, 8), np.float32)})
    assert list(sessions.values()) == [False, False]
