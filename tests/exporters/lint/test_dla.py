"""What a Deep Learning Accelerator does not take, said only with --dla."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from exporters.lint.finding import Finding
from exporters.lint.linting import lint
from tests.exporters.lint.canvas import Canvas, Case
from tests.exporters.lint.corpus import CASES


def found(model: onnx.ModelProto, version: str = "10.3", target: str = "tensorrt") -> list[Finding]:
    findings = lint(model, target, trt_version=version, dla=True)
    return [finding for finding in findings if finding.rule.startswith("DLA-")]


def graph(build: Callable[[Canvas, str], str], **facts: object) -> onnx.ModelProto:
    return Case("dla", build, frozenset(), frozenset(), **facts).model()  # type: ignore[arg-type]


def test_nothing_without_the_option() -> None:
    for case in CASES.values():
        assert not any(f.rule.startswith("DLA-") for f in lint(case.model(), "tensorrt"))


def test_a_plain_convolution_runs() -> None:
    assert found(CASES["conv-signed"].model()) == []
    assert found(CASES["residual-both-sides"].model()) == []


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("8.6", None),
        ("10.3", None),
        ("10.7", None),
        ("10.8", "error"),
        ("10.16", "error"),
        ("11.0", "error"),
        ("11.3", "error"),
        ("11.4", None),
    ],
)
def test_versions(version: str, level: str | None) -> None:
    levels = [finding.level for finding in found(CASES["conv-signed"].model(), version)]
    assert levels == ([level] if level else [])


def test_free_sizes() -> None:
    (finding,) = found(CASES["dynamic-batch"].model())
    assert (finding.rule, finding.level, finding.node) == ("DLA-SHAPE", "warning", "x")


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((4096, 16, 8, 8), True), ((4097, 16, 8, 8), False), ((1, 16, 8193, 8), False)],
)
def test_greatest_sizes(shape: tuple[int, ...], fits: bool) -> None:
    model = graph(lambda g, x: g.pair(g.conv(g.pair(x), name="layer")), input=shape)
    assert [finding.rule for finding in found(model)] == ([] if fits else ["DLA-SHAPE"])


@pytest.mark.parametrize(
    "name",
    [
        "hard-swish",
        "control-flow-loop",
        "custom-operator",
        "pad-shortcut",
        "one-dimensional-convolution",
    ],
)
def test_layers_that_fall_back(name: str) -> None:
    (finding,) = found(CASES[name].model())
    assert (finding.rule, finding.level) == ("DLA-LAYER", "warning")


@pytest.mark.parametrize(
    ("op_type", "attributes", "words"),
    [
        ("MaxPool", {"kernel_shape": [9, 9]}, "window [9, 9]"),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [17, 1]}, "strides [17, 1]"),
        ("MaxPool", {"kernel_shape": [8, 8], "strides": [16, 16]}, ""),
    ],
)
def test_ranges_of_pooling(op_type: str, attributes: dict[str, list[int]], words: str) -> None:
    model = graph(lambda g, x: g.op(op_type, g.pair(x), name="layer", **attributes))
    messages = [finding.message for finding in found(model)]
    assert messages == ([] if not words else [f"{op_type} with the {words}; accepted is up to "
                        + ("8" if "window" in words else "16")])  # fmt: skip


@pytest.mark.parametrize(("kernel", "stride", "pad", "fits"), [
    (32, 8, 31, True), (33, 1, 0, False), (3, 9, 0, False), (3, 1, 32, False),
])  # fmt: skip
def test_ranges_of_convolutions(kernel: int, stride: int, pad: int, fits: bool) -> None:
    def build(g: Canvas, x: str) -> str:
        w = g.weights((16, 16, kernel, kernel))
        geometry = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return g.pair(g.conv(g.pair(x), w, name="layer", **geometry))

    model = graph(build, input=(1, 16, 64, 64))
    assert [finding.rule for finding in found(model)] == ([] if fits else ["DLA-LAYER"])


def test_concat_along_another_axis() -> None:
    def build(g: Canvas, x: str) -> str:
        return g.op("Concat", g.pair(x), g.pair(x), name="join", axis=2)

    (finding,) = found(graph(build))
    assert "accepted is the channels' axis 1" in finding.message


def test_float_networks() -> None:
    model = CASES["float-network"].model()
    assert [finding.rule for finding in found(model, "11.4")] == ["DLA-TYPE"]
    assert found(model, "10.3") == [], "there the flags decide"
