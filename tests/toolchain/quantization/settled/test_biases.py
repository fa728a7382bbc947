"""Settled biases are whole multiples of the int32 grid, and the network is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from exporters.onnx_from_torch import export_onnx
from toolchain.graph import trace
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.lowered_layers import IntegerLayer
from toolchain.quantization.lowering import lower
from toolchain.quantization.settled.biases import settle_biases


def off_grid(path: Path) -> float:
    """The largest distance of a convolution's bias from k . s_x . s_w, in these units."""
    model = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    worst = 0.0
    for node in model.graph.node:
        if node.op_type == "Conv":
            source = made_by[node.input[0]]
            while source.op_type != "DequantizeLinear":
                source = made_by[source.input[0]]
            step = stored[source.input[1]].astype(np.float64)
            step_O = step * stored[made_by[node.input[1]].input[1]]
            units_O = stored[node.input[2]] / step_O
            worst = max(worst, float(np.abs(units_O - np.rint(units_O)).max()))
    return worst


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_biases_are_on_the_grid_of_integer_kernels(
    resnet: Any, quantize: Any, bits: int, tmp_path: Path
) -> None:
    network = quantize(resnet.network, resnet.images, bits=bits)
    want = network(resnet.images)
    example = resnet.images[:2]
    assert off_grid(export_onnx(lower(network), example, tmp_path / "before.onnx")) > 0.2
    moved = settle_biases(network)
    assert moved > 0
    assert off_grid(export_onnx(lower(network), example, tmp_path / "after.onnx")) < 0.02
    # A shift far below a step turns some roundings over.
    assert float((network(resnet.images) - want).abs().max()) < 0.1 * float(want.abs().max())
    assert settle_biases(network) < 1e-2 * moved, "settled already"


@torch.no_grad()
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_whatever_holds_the_shift_moves(affine: bool, bias: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, affine=affine)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), norm, nn.ReLU(), nn.Conv2d(4, 4, 1, bias=bias), nn.ReLU()
    )
    x = torch.randn(4, 3, 6, 6)
    network = trace(model.eval())
    attach_quantizers(network, Quantization())
    calibrate(network, [x])
    network.double()
    settle_biases(network)
    lowered = lower(network)
    steps = [float(network.get_submodule(f"quantizers.{name}").step())  # type: ignore[operator, union-attr]
             for name in ("input_1", "_2")]  # fmt: skip
    for name, step in zip(("0", "3"), steps, strict=True):
        layer = lowered.get_submodule(name)
        assert isinstance(layer, IntegerLayer)
        units_O = layer.bias_O / (layer.scale_O * step)
        assert float((units_O - units_O.round()).abs().max()) < 1e-5


@torch.no_grad()
def test_float_layers_and_the_head_are_left_alone(resnet: Any, quantize: Any) -> None:
    plain = {key: value.clone() for key, value in resnet.network.state_dict().items()}
    assert settle_biases(resnet.network) == 0
    assert all(torch.equal(value, plain[key]) for key, value in resnet.network.state_dict().items())
    network = quantize(resnet.network, resnet.images, ignore=("layer1.*",))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    settle_biases(network)
    changed = {
        key for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed
    assert all(key.split(".")[-2] == "bias" and "bn" in key for key in changed)
    assert not any(key.startswith(("layer1", "linear")) for key in changed)
