"""A settled student is on numbers that torch, float operators and integer kernels round alike."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, fx, nn

from deploy.sessions.ort import OrtCpuSession
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import latent_parameter, weight_view, weighted
from toolchain.quantization.lowering import lower
from toolchain.quantization.settled.multipliers import COARSEST, fraction
from toolchain.quantization.settled.settling import settle
from toolchain.quantization.settled.steps import nearest_odd

# With p = 1 any odd denominator will do; these are for the others.
DENOMINATORS = range(1, 513, 2)


def quantized(network: fx.GraphModule, images: Tensor, **how: Any) -> fx.GraphModule:
    attach_quantizers(network, Quantization(**how), images.shape[1:])
    calibrate(network, [images])
    return network.eval()


def distance_from_odd_fraction(value: float) -> float:
    """Relative distance to the nearest p / d with an odd d within reach, found by trying them all."""
    d_D = np.array(DENOMINATORS, dtype=np.float64)
    p_D = np.maximum(np.rint(value * d_D), 1)
    one = max(2 * round((1 / value - 1) / 2) + 1, 1)
    return min(float(np.abs(p_D / d_D / value - 1).min()), abs(1 / one / value - 1))


@given(st.floats(1e-4, 50.0))
def test_a_multiplier_becomes_a_fraction_with_an_odd_denominator(value: float) -> None:
    got = float(fraction(torch.tensor([value], dtype=torch.float64)))
    assert abs(got / value - 1) <= 1.0 / COARSEST
    exact = Fraction(got).limit_denominator(10_001)
    assert abs(float(exact) / got - 1) < 1e-12
    assert exact.denominator % 2 == 1
    # Whatever integer a sum is, it is far from every half, which is what float32 is compared with.
    for integer in (1, 2, 3, 127, 1_000, 12_345, 99_999):
        assert abs((exact * integer) % 1 - Fraction(1, 2)) >= Fraction(1, 2 * exact.denominator)


@given(st.floats(1e-4, 50.0))
def test_a_settled_fraction_stays(value: float) -> None:
    once = fraction(torch.tensor([value], dtype=torch.float64))
    assert float((fraction(once) / once - 1).abs()) < 1e-12
    stored = once.float().double()
    assert float((fraction(stored) / stored - 1).abs()) < 2e-7, "as it is kept in float32"


@given(st.floats(0.0, 1e6))
def test_the_nearest_odd(x: float) -> None:
    got = int(nearest_odd(torch.tensor(x, dtype=torch.float64)))
    assert got % 2 == 1
    assert got >= 1
    assert abs(got - x) <= 1


@torch.no_grad()
def test_multipliers_of_a_network_are_odd_fractions(builtin: Any) -> None:
    network = quantized(builtin.network, builtin.images)
    settle(network)
    checked = 0
    lowered = lower(network)
    for node in lowered.graph.nodes:
        layer = lowered.get_submodule(str(node.target)) if node.op == "call_module" else None
        user = next(iter(node.users), None)
        if layer is None or not hasattr(layer, "scale_O") or user is None or len(node.users) > 1:
            continue
        after = lowered.get_submodule(str(user.target)) if user.op == "call_module" else None
        source = node.args[0]
        while not hasattr(lowered.get_submodule(str(source.target)), "scale"):
            source = source.args[0]  # pooling and flattening move values
        before = lowered.get_submodule(str(source.target))
        if not hasattr(after, "scale"):
            continue
        for q_X, scale in zip(layer.q_OX, layer.scale_O.tolist(), strict=True):
            if bool((q_X != 0).any()):
                m = scale * float(before.scale) / float(after.scale)  # type: ignore[arg-type,union-attr]
                assert distance_from_odd_fraction(m) < 1e-6, (node.target, m)
                checked += 1
    assert checked >= 8


@torch.no_grad()
def test_steps_that_meet_are_odd_multiples_of_one_unit(resnet: Any) -> None:
    network = quantized(resnet.network, resnet.images)
    before = {n: float(m.step()) for n, m in network.named_modules() if hasattr(m, "step")}  # type: ignore[operator]
    settle(network)
    for node in network.graph.nodes:
        if "add" not in str(node.target):
            continue
        ends = [*node.all_input_nodes, next(iter(node.users))]
        found = [network.get_submodule(str(end.target)) for end in ends if end.op == "call_module"]
        steps = [float(m.step()) for m in found if isinstance(m, ActivationQuantizer)]
        for step in steps:
            ratio = Fraction(step / steps[-1]).limit_denominator(5_000)
            assert abs(float(ratio) * steps[-1] / step - 1) < 1e-6
            assert ratio.denominator % 2 == 1 and ratio.numerator % 2 == 1
    after = {n: float(m.step()) for n, m in network.named_modules() if hasattr(m, "step")}  # type: ignore[operator]
    assert after != before
    assert all(abs(after[name] / before[name] - 1) < 0.01 for name in before)


@torch.no_grad()
def test_the_integers_of_weights_stay_and_twice_is_once(builtin: Any) -> None:
    network = quantized(builtin.network, builtin.images)
    before = integers(network)
    plain = copy.deepcopy(network)(builtin.images)
    moved = settle(network)
    assert 0 < moved.multipliers <= 1 / COARSEST
    assert "settled" in str(moved)
    assert all(torch.equal(q_OX, before[name]) for name, q_OX in integers(network).items())
    # Gains move by a four-hundredth at most and some roundings turn over: the network is what it was.
    settled = network(builtin.images)
    assert float((settled - plain).norm() / plain.norm()) < 0.1
    again = settle(network)
    assert (again.steps, again.multipliers) == (0, 0)
    assert float((network(builtin.images) - settled).abs().max()) <= 1e-5 * float(
        settled.abs().max()
    )


def integers(network: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, module in weighted(network):
        view = weight_view(module)
        if view is not None and view.quantizer is not None:
            latent = latent_parameter(module, "weight")
            found[name] = view.quantizer.integers(latent)[0]
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lsq", "minmax"])
@pytest.mark.parametrize("steps", [127, 255])
def test_no_value_inside_is_rounded_otherwise_by_anyone(
    kind: str, steps: int, randomize: Any, tmp_path: Path
) -> None:
    """A deep network on many rows: where nothing is settled some roundings turn over, and then none."""
    torch.manual_seed(0)
    network = trace(build("cifar_resnet", depth=20, width=8)).eval()
    randomize(network)
    images = torch.randn(256, 3, 16, 16)
    network = quantized(network, images[:64], kind=kind, unsigned_steps=steps)
    turned = differing(network, images, tmp_path / "before.onnx")
    settle(network)
    settled = differing(network, images, tmp_path / "after.onnx")
    assert max(turned) > 0, "this network does not show what settling is for"
    assert settled == [0, 0, 0]


def differing(network: fx.GraphModule, images: Tensor, path: Path) -> list[int]:
    """Rows that float64, float operators and integer kernels answer otherwise than torch in float32."""
    export_onnx(lower(network), images[:2], path)
    want = network(images).numpy()
    got = [copy.deepcopy(network).double()(images.double()).numpy()]
    for fused in (False, True):
        session = OrtCpuSession(path, threads=1, disable_fusion=not fused)
        got.append(session.run({INPUT: images.numpy()})[OUTPUT])
        session.close()
    apart = [np.abs(each - want).max(axis=1) > 1e-5 * np.abs(want).max() for each in got]
    return [int(each_N.sum()) for each_N in apart]


@torch.no_grad()
def test_a_float_network_and_float_layers_stay(resnet: Any) -> None:
    before = {key: value.clone() for key, value in resnet.network.state_dict().items()}
    assert not settle(resnet.network).moved
    after = resnet.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@torch.no_grad()
def test_a_relu6_keeps_its_ceiling() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.act = nn.ReLU6()
            self.end = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.act(self.one(x)) + self.act(self.two(x))).mean((2, 3))

    torch.manual_seed(1)
    images = 40 * torch.randn(8, 3, 4, 4)
    network = quantized(trace(Joined().eval()), images)
    settle(network)
    capped = [
        module
        for module in network.modules()
        if isinstance(module, ActivationQuantizer) and module.absorbs == "relu6"
    ]
    assert capped
    for module in capped:
        assert float(module.scale) * module.high <= 6 * (1 + 1e-6)
        assert float(module.step()) == pytest.approx(float(module.scale), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_the_file_holds_the_settled_numbers(resnet: Any, target: Any, tmp_path: Path) -> None:
    network = quantized(resnet.network, resnet.images, unsigned_steps=127)
    settle(network)
    path = export_onnx(lower(network, target), resnet.images[:2], tmp_path / "net.onnx")
    model = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    checked = 0
    for node in model.graph.node:
        after = readers.get(node.output[0], [])
        if node.op_type != "Conv" or len(after) != 1:
            continue
        (end,) = after if after[0].op_type != "Relu" else readers[after[0].output[0]]
        weight = made[node.input[1]]
        source = made[node.input[0]]
        if end.op_type != "QuantizeLinear" or source.op_type != "DequantizeLinear":
            continue
        integers_OX = stored[weight.input[0]]
        if set(np.unique(integers_OX)) <= {0, 1}:
            continue  # a shortcut that moves values
        step = float(stored[source.input[1]]) / float(stored[end.input[1]])
        used_O = integers_OX.reshape(len(integers_OX), -1).any(axis=1)
        for scale in stored[weight.input[1]][used_O]:
            assert distance_from_odd_fraction(float(scale) * step) < 1e-6
            checked += 1
    assert checked >= 8
