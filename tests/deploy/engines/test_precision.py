from __future__ import annotations

import json

import pytest

from deploy.engines.layers import Layer
from deploy.engines.precision import PrecisionSummary, require_int8, summarize
from deploy.errors import VerificationError


def layer(name: str, precision: str, kind: str = "convolution", *nodes: str) -> Layer:
    return Layer(name, kind, precision, precision, "", nodes or (name,), kind)


LAYERS = [
    layer("stem", "float32"),
    layer("conv1", "int8"),
    layer("conv2", "int8"),
    layer("move", "float32", "reformat"),
    layer("fc", "float16", "product"),
]


def test_shares_of_layers() -> None:
    summary = summarize(LAYERS, "build log")
    assert summary.by_precision == {"float32": 2, "int8": 2, "float16": 1}
    assert summary.share("int8") == pytest.approx(0.4)
    assert summary.share("int4") == 0
    assert summary.reformats == ("move",)
    assert summary.convolutions == {"stem": "float32", "conv1": "int8", "conv2": "int8"}
    assert summary.products == {"fc": "float16"}
    assert summary.in_float == ("stem", "fc")
    assert (summary.time_share, summary.reformat_time_share) == ({}, None)


def test_shares_of_time() -> None:
    times_us = {"stem": 10.0, "conv1": 20.0, "conv2": 20.0, "move": 25.0, "fc": 25.0}
    summary = summarize(LAYERS, "engine inspector", times_us)
    assert summary.time_share == pytest.approx({"float32": 0.35, "int8": 0.4, "float16": 0.25})
    assert summary.reformat_time_share == pytest.approx(0.25)


@pytest.mark.parametrize("times_us", [{}, {"another": 3.0}, {"stem": 0.0}])
def test_times_of_nothing_are_no_shares(times_us: dict[str, float]) -> None:
    summary = summarize(LAYERS, "engine inspector", times_us)
    assert (summary.time_share, summary.reformat_time_share) == ({}, None)


def test_an_engine_without_layers() -> None:
    summary = summarize([], "nothing")
    assert summary.share("int8") == 0
    with pytest.raises(VerificationError, match="none of the engine's 0 layers"):
        require_int8(summary, "net.onnx")


def test_a_layer_is_named_by_its_own_node() -> None:
    summary = summarize([layer("conv_myl0_2", "int8", "convolution", "weights", "conv")], "")
    assert summary.convolutions == {"conv": "int8"}


def test_the_widest_of_a_nodes_layers_counts() -> None:
    for order in (("int8", "float32"), ("float32", "int8")):
        layers = [layer(f"conv_{kind}", kind, "convolution", "conv") for kind in order]
        assert summarize(layers, "").convolutions == {"conv": "float32"}


def test_one_convolution_on_int8_is_enough_unless_every_one_is_asked() -> None:
    summary = summarize(LAYERS, "")
    require_int8(summary, "net.onnx")
    with pytest.raises(VerificationError, match=r"1 of 3 convolutions .*stem \(float32\)"):
        require_int8(summary, "net.onnx", every=True)


def test_no_convolution_on_int8_is_refused_by_name() -> None:
    summary = summarize([layer("a", "float16"), layer("b", ""), layer("c", "int8", "other")], "")
    with pytest.raises(VerificationError, match=r"2 of 2 .*a \(float16\), b \(unknown\)") as no:
        require_int8(summary, "net.onnx")
    assert "\n" not in str(no.value)


def test_many_names_are_cut() -> None:
    summary = summarize([layer(f"conv{i}", "float32") for i in range(20)], "")
    with pytest.raises(VerificationError, match=r"conv7 \(float32\), \.\.\.") as no:
        require_int8(summary, "net.onnx")
    assert "conv8" not in str(no.value)


def test_products_count_where_there_is_no_convolution() -> None:
    require_int8(summarize([layer("fc", "int8", "product")], ""), "net.onnx")
    with pytest.raises(VerificationError, match="1 of 1 matrix products"):
        require_int8(summarize([layer("fc", "float32", "product")], ""), "net.onnx")


def test_a_summary_goes_there_and_back() -> None:
    summary = summarize(LAYERS, "build log", {"stem": 1.0})
    assert PrecisionSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
