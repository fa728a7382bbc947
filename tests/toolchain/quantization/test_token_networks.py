"""Transformers and mixers quantized and lowered: integer linear layers around float norms and attention."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import fx, nn

from deploy.engines.importer import import_onnx
from deploy.sessions.ort import OrtCpuSession
from exporters.lint.ort_kernels import left_in_float
from exporters.lint.view import GraphView, label
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from exporters.ort_graph import kernel_report
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import weight_view, weighted
from toolchain.quantization.lowered_layers import IntegerLayer
from toolchain.quantization.lowering import lower

SMALL: dict[str, Any] = {"image_size": 8, "patch": 2, "width": 12, "depth": 2, "mlp_ratio": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", {**SMALL, "heads": 2}),
    "vit-token": ("vit", {**SMALL, "heads": 2, "pool": "token"}),
    "mixer": ("mixer", {**SMALL, "token_hidden": 8}),
}
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> fx.GraphModule:
    torch.manual_seed(0)
    name, args = NETWORKS[request.param]
    network = build(name, **args).eval()
    for parameter in network.parameters():  # so that attention differs between tokens
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return trace(network)


def quantize(network: fx.GraphModule, **settings: Any) -> None:
    attach_quantizers(network, Quantization(**settings), (3, 8, 8))
    calibrate(network, [IMAGES])


def layers(network: fx.GraphModule) -> set[str]:
    return {name for name, _ in weighted(network)}


@torch.no_grad()
@pytest.mark.parametrize("bits", [3, 8])
def test_every_layer_is_quantized_and_lowered_to_the_students_numbers(
    network: fx.GraphModule, bits: int
) -> None:
    float_logits = network(IMAGES)
    names = layers(network)
    quantize(network, bits=bits)
    views = [weight_view(module) for _, module in weighted(network)]
    assert all(view is not None and view.quantizer is not None for view in views)
    off = float((network(IMAGES) - float_logits).abs().max() / float_logits.abs().max())
    assert 0 < off < (0.1 if bits == 8 else 1)
    network.double()
    for target in ("ort-cpu", "tensorrt"):
        lowered = lower(network, target)  # type: ignore[arg-type]
        difference = lowered(IMAGES.double()) - network(IMAGES.double())
        assert float(difference.abs().max()) < 1e-9
        integer = {name for name, m in lowered.named_modules() if isinstance(m, IntegerLayer)}
        assert integer == names - {"classifier"}


@torch.no_grad()
@pytest.mark.parametrize("quantized", [False, True])
def test_onnx_runtime_computes_it_with_integer_linear_layers(
    network: fx.GraphModule, quantized: bool, tmp_path: Path
) -> None:
    names = layers(network)
    if quantized:
        quantize(network)
    path = export_onnx(lower(network), IMAGES[:2], tmp_path / "m.onnx")
    session = OrtCpuSession(path)
    for batch in (1, 3, 8):
        got = session.run({INPUT: IMAGES[:batch].numpy()})[OUTPUT]
        wanted = network(IMAGES[:batch]).numpy()
        # A value on the edge between two steps may fall to either side.
        atol = (0.02 if quantized else 1e-5) * np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, atol=atol)
    session.close()
    report = kernel_report(path)
    integer = {layer.name.rpartition("/")[0] for layer in report.integer}
    assert integer >= (names - {"classifier"} if quantized else set())
    executed = {layer.name for layer in report.float}
    foreseen = {label(left.node) for left in left_in_float(GraphView(onnx.load(path)))}
    assert executed <= foreseen
    assert not {layer.name for layer in report.integer} & foreseen
    told = " ".join(report.notes())
    assert all(layer.name in told for layer in report.float)
    if quantized:  # the head, and attention's two products
        left = {layer.name for layer in report.float} - {"classifier/Gemm"}
        assert all(re.fullmatch(r"blocks\.\d\.attn/MatMul(_2)?", name) for name in left)
    else:
        assert not report.integer


@torch.no_grad()
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-fp16"])
def test_tensorrt_can_import_it(network: fx.GraphModule, target: Any, tmp_path: Path) -> None:
    quantize(network)
    half = target == "tensorrt-fp16"
    path = export_onnx(lower(network, target), IMAGES[:2], tmp_path / "m.onnx", float16=half)
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ReduceMean":  # axes that are computed at run time are refused
            assert node.input[1] in constants
    if importlib.util.find_spec("tensorrt_rtx"):
        answer = import_onnx(path, "rtx")
        assert answer, answer.problems


def test_learned_positions_and_norms_stay_float(network: fx.GraphModule) -> None:
    """Only values go on grids: an add of a parameter is no residual add."""
    quantize(network)
    sources = Counter(
        source.op
        for node in network.graph.nodes
        if node.op == "call_module"
        and isinstance(network.get_submodule(str(node.target)), ActivationQuantizer)
        for source in node.all_input_nodes
    )
    assert sources["get_attr"] == 0
    assert sources.total() > 0


def test_what_only_float_operations_read_is_on_no_grid(network: fx.GraphModule) -> None:
    """Grids stand on inputs of linear layers and of adds; a layer's own result needs none."""
    with_all = copy.deepcopy(network)
    attach_quantizers(with_all, Quantization())
    quantize(network)
    grids = {name for name, m in network.named_modules() if isinstance(m, ActivationQuantizer)}
    every = {name for name, m in with_all.named_modules() if isinstance(m, ActivationQuantizer)}
    assert grids < every
    spared = {name.removeprefix("quantizers.") for name in every - grids}
    ends = ("attn_q", "attn_k", "attn_v", "mlp_fc1")
    assert spared == {node.name for node in network.graph.nodes if node.name.endswith(ends)}


def test_a_layer_on_vectors_keeps_the_grid_that_its_kernel_needs() -> None:
    """Without it ONNX Runtime computes a Gemm in float."""
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GELU(), nn.Linear(8, 4))
    one, two = trace(vectors), copy.deepcopy(trace(vectors))
    attach_quantizers(one, Quantization())
    attach_quantizers(two, Quantization(), (3, 8, 8))
    assert list(one.state_dict()) == list(two.state_dict())
