"""Faults seeded into lowered graphs of three networks: the linter names the layer that was touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from deploy.engines.importer import import_onnx
from deploy.targets import TARGETS, Target
from exporters.lint.finding import Finding
from exporters.lint.linting import lint
from exporters.lint.ort_kernels import left_in_float
from exporters.lint.view import GraphView, label
from exporters.onnx_from_torch import export_onnx
from exporters.ort_graph import kernel_report
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.lowering import lower

pytestmark = pytest.mark.slow  # exports nine graphs

NETS = {
    "cifar_resnet": ({"depth": 8}, (3, 16, 16)),
    "ds_cnn": ({}, (1, 32, 32)),
    "mobilenet_v2": ({}, (3, 32, 32)),
}
Exported = Callable[[str, Target], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    done: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("lowered")

    def export(name: str, target: Target) -> Path:
        if (name, target) not in done:
            arguments, shape = NETS[name]
            torch.manual_seed(0)
            images_BCHW = torch.randn(4, *shape)
            network = trace(build(name, **arguments))
            attach_quantizers(network, Quantization())
            calibrate(network, iter([images_BCHW]))
            path = folder / f"{name}-{target}.onnx"
            done[name, target] = export_onnx(lower(network, target), images_BCHW, path)
        return done[name, target]

    return export


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def errors_and_warnings(model: onnx.ModelProto | Path, target: str) -> list[Finding]:
    return [finding for finding in lint(model, target) if finding.level != "note"]


def middle_convolution(view: GraphView) -> onnx.NodeProto:
    """Of the convolutions behind Q/DQ, one that is neither first nor last."""
    fed = [node for node in view.of_type("Conv") if view.dequantizer(node.input[0]) is not None]
    return fed[len(fed) // 2]


@pytest.mark.parametrize("target", TARGETS)
def test_sound_graphs_are_clean(net: str, target: Target, exported: Exported) -> None:
    path = exported(net, target)
    findings = errors_and_warnings(path, target)
    assert {finding.rule for finding in findings} <= {"ORT-OUTPUT-FLOAT"}, "a float head"
    if target != "ort-cpu":
        assert import_onnx(path).accepted
    report = kernel_report(path)
    executed = {layer.name for layer in (*report.float, *report.other_float)}
    left = left_in_float(GraphView(onnx.load(str(path))))
    assert {label(one.node) for one in left} == executed


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_a_scale_four_times_too_large(net: str, target: Target, exported: Exported) -> None:
    model = onnx.load(str(exported(net, target)))
    view = GraphView(model)
    convolution = middle_convolution(view)
    dequantize = view.dequantizer(convolution.input[0])
    assert dequantize is not None
    scale = view.array(dequantize.input[1])
    assert scale is not None
    wrong = numpy_helper.from_array(np.asarray(scale * 4, np.float32), "wrong_scale")
    model.graph.initializer.append(wrong)
    dequantize.input[1] = "wrong_scale"
    struck = [f.node for f in errors_and_warnings(model, target) if f.rule == "PAIR-TWO-GRIDS"]
    assert struck == [label(dequantize)]


def test_an_unfolded_batch_norm(net: str, exported: Exported) -> None:
    model = onnx.load(str(exported(net, "ort-cpu")))
    convolution = middle_convolution(GraphView(model))
    channels = GraphView(model).shape(convolution.output[0])
    assert channels is not None
    ones = numpy_helper.from_array(np.ones(channels[1], np.float32), "ones")
    model.graph.initializer.append(ones)
    place = list(model.graph.node).index(convolution)
    value = convolution.output[0]
    convolution.output[0] = "before_norm"
    norm = helper.make_node(
        "BatchNormalization", ["before_norm", *["ones"] * 4], [value], "seeded_norm"
    )
    model.graph.node.insert(place + 1, norm)
    struck = [f.node for f in errors_and_warnings(model, "ort-cpu") if f.rule == "ORT-BATCH-NORM"]
    assert struck == [label(convolution)]


def cut_pair(model: onnx.ModelProto, dequantize: onnx.NodeProto) -> None:
    """Let everybody read the value as it was before the pair."""
    quantize = next(n for n in model.graph.node if dequantize.input[0] in n.output)
    for node in model.graph.node:
        for place, value in enumerate(node.input):
            if value == dequantize.output[0]:
                node.input[place] = quantize.input[0]
    model.graph.node.remove(dequantize)
    model.graph.node.remove(quantize)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_a_pair_that_was_deleted(net: str, target: Target, exported: Exported) -> None:
    model = onnx.load(str(exported(net, target)))
    view = GraphView(model)
    convolution = middle_convolution(view)
    dequantize = view.dequantizer(convolution.input[0])
    assert dequantize is not None
    cut_pair(model, dequantize)
    rule = "ORT-INPUT-FLOAT" if target == "ort-cpu" else "PLACE-INPUT-FLOAT"
    struck = [f.node for f in errors_and_warnings(model, target) if f.rule == rule]
    assert label(convolution) in struck


@pytest.mark.parametrize("net", ["cifar_resnet", "mobilenet_v2"], indirect=True)
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_a_residual_branch_without_quantizers(net: str, target: Target, exported: Exported) -> None:
    model = onnx.load(str(exported(net, target)))
    view = GraphView(model)
    join = view.of_type("Add")[-1]
    alone = [value for value in join.input if len(view.readers(value)) == 1]
    dequantize = view.dequantizer(alone[-1])
    assert dequantize is not None
    cut_pair(model, dequantize)
    rule = "ORT-INPUT-FLOAT" if target == "ort-cpu" else "PLACE-ADD-ONE-SIDED"
    struck = [f.node for f in errors_and_warnings(model, target) if f.rule == rule]
    assert struck == [label(join)]
