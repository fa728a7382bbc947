"""Exactly one quantizer on every value that needs one, none on the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from deploy.errors import ConfigError
from toolchain import graph
from toolchain.graph import trace
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import (
    PREFIX,
    Quantization,
    attach_quantizers,
    calibrate,
    quantizer_of,
)
from toolchain.quantization.attached import latent_parameter, weight_view, weighted
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import WeightQuantizer


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn0(self.stem(x)))
        b = self.bn1(self.conv(a))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(a + b), 1), 1))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([F.relu(self.one(x)), self.two(x)], 1)).mean((2, 3))


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.average, self.most = nn.AvgPool2d(2), nn.MaxPool2d(2)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.average(self.most(F.relu(input=self.conv(x)))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.bn0 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.deep, self.bn1 = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
        self.slim, self.bn2 = nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.wide(x)))
        x = torch.clamp(self.bn1(self.deep(x)), 0, 6)
        return torch.flatten(self.bn2(self.slim(x)), 1)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.bn(self.a(torch.flatten(x, 1)))))


class Branching(nn.Module):
    """A value read twice, before and after its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(F.relu(y)) + self.c(y)


# Value name -> (absorbed nonlinearity, signed)
SITES: list[tuple[Callable[[], nn.Module], dict[str, tuple[str, bool]]]] = [
    (
        Residual,
        {
            "x": ("none", True),
            "relu": ("relu", False),
            "bn1": ("none", True),
            "relu_1": ("relu", False),
            "adaptive_avg_pool2d": ("none", False),
        },
    ),
    (
        Concat,
        {
            "x": ("none", True),
            "relu": ("relu", False),
            "two": ("none", True),
            "cat": ("none", True),
            "last": ("none", True),
        },
    ),
    (Pooling, {"x": ("none", True), "relu": ("relu", False), "average": ("none", False)}),
    (
        Depthwise,
        {
            "x": ("none", True),
            "relu": ("relu6", False),
            "clamp": ("relu6", False),
            "bn2": ("none", True),
        },
    ),
    (Mlp, {"x": ("none", True), "relu": ("relu", False)}),
    (
        Branching,
        {
            "x": ("none", True),
            "a": ("none", True),
            "relu": ("relu", False),
            "b": ("none", True),
            "c": ("none", True),
        },
    ),
]


def quantizers(network: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    found = {}
    for name, module in network.get_submodule(PREFIX).named_children():
        assert isinstance(module, ActivationQuantizer)
        found[name] = module
    return found


def output_of(network: fx.GraphModule) -> fx.Node:
    return next(node for node in network.graph.nodes if node.op == "output").args[0]


@pytest.mark.parametrize(("build", "sites"), SITES)
def test_sites(build: Callable[[], nn.Module], sites: dict[str, tuple[str, bool]]) -> None:
    network = trace(build())
    attach_quantizers(network, Quantization())
    found = {name: (q.absorbs, q.signed) for name, q in quantizers(network).items()}
    assert found == sites


def check_grid(network: fx.GraphModule) -> None:
    """What the kernels of a target ask for: each value quantized once, where it is made."""
    sources = []
    for node in network.graph.nodes:
        layer = graph.module_of(network, node)
        if quantizer_of(network, node) is not None:
            sources.append(node.args[0])
            absorbed = quantizer_of(network, node).absorbs  # type: ignore[union-attr]
            assert absorbed != "none" or quantizer_of(network, node.args[0]) is None
        if isinstance(layer, _ConvNd | nn.Linear) or graph.is_add(network, node):
            for source in node.all_input_nodes:
                assert quantizer_of(network, graph.origin(network, source)) is not None
    assert len(set(sources)) == len(sources), "a value is quantized twice"
    assert quantizer_of(network, output_of(network)) is None
    called = [str(n.target) for n in network.graph.nodes if quantizer_of(network, n) is not None]
    assert sorted(called) == sorted(f"{PREFIX}.{name}" for name in quantizers(network))
    assert len(set(called)) == len(called)


@pytest.mark.parametrize("build", [build for build, _ in SITES])
def test_every_value_is_quantized_once(build: Callable[[], nn.Module]) -> None:
    network = trace(build())
    attach_quantizers(network, Quantization())
    check_grid(network)


def test_every_value_of_the_built_in_networks_is_quantized_once(builtin: Any) -> None:
    attach_quantizers(builtin.network, Quantization())
    check_grid(builtin.network)
    assert not any(graph.is_relu(builtin.network, node) for node in builtin.network.graph.nodes)


@torch.no_grad()
def test_open_quantizers_change_nothing(builtin: Any) -> None:
    want = builtin.network(builtin.images)
    attach_quantizers(builtin.network, Quantization())
    with use_view(builtin.network, View.LATENT):
        assert torch.equal(builtin.network(builtin.images), want)


@pytest.mark.parametrize("mode", [True, False])
def test_mode_is_taken_over(mode: bool) -> None:
    network = trace(Residual().train(mode))
    attach_quantizers(network, Quantization(kind="minmax"))
    kinds = (ActivationQuantizer, WeightQuantizer)
    assert {m.training for m in network.modules() if isinstance(m, kinds)} == {mode}


def test_first_and_last_layer_have_bits_of_their_own(resnet: Any) -> None:
    attach_quantizers(resnet.network, Quantization(bits=3, edge_bits=7, activation_bits=5))
    views = [weight_view(module) for _, module in weighted(resnet.network)]
    bits = [view.quantizer.bits for view in views if view and view.quantizer]
    assert bits == [7, *[3] * (len(bits) - 2), 7]
    assert {q.bits for q in quantizers(resnet.network).values()} == {5}


def test_ignored_layers_stay_float() -> None:
    network = trace(Residual())
    attach_quantizers(network, Quantization(ignore=("stem", "he*")))
    kept = [n for n, m in weighted(network) if weight_view(m).quantizer is not None]  # type: ignore[union-attr]
    assert kept == ["conv"]
    assert sorted(quantizers(network)) == ["adaptive_avg_pool2d", "bn1", "relu", "relu_1"]


def test_first_and_last_are_layers_too() -> None:
    network = trace(Residual())
    attach_quantizers(network, Quantization(ignore=("first", "last")))
    names = [name for name, _ in weighted(network)]
    kept = [n for n, m in weighted(network) if weight_view(m).quantizer is not None]  # type: ignore[union-attr]
    assert kept == names[1:-1]


def test_everything_ignored_is_the_float_network(resnet: Any) -> None:
    x = torch.randn(2, 48)
    network = trace(nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2)))
    want = network(x)
    attach_quantizers(network, Quantization(ignore=("*",)))
    calibrate(network, [x])
    assert not quantizers(network)
    assert torch.equal(network(x), want)


@pytest.mark.parametrize("pattern", ["nope", "layer9.*", "Stem", ""])
def test_pattern_that_matches_nothing_is_told(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"matches no layer; accepted are .* stem, conv, head"):
        attach_quantizers(trace(Residual()), Quantization(ignore=("stem", pattern)))


def test_record_round_trip() -> None:
    quantization = Quantization(bits=4, kind="minmax", ignore=("a", "b.*"))
    record = quantization.to_json()
    assert record["ignore"] == ["a", "b.*"]
    assert Quantization.from_json(record) == quantization


@torch.no_grad()
def test_calibration_sets_every_step(builtin: Any) -> None:
    network = builtin.network
    attach_quantizers(network, Quantization())
    before = [q.scale.clone() for q in quantizers(network).values()]
    calibrate(network, builtin.images.split(3), "max")
    for quantizer, was in zip(quantizers(network).values(), before, strict=True):
        assert not torch.equal(quantizer.scale, was)
    for _, module in weighted(network):
        view = weight_view(module)
        assert view is not None
        assert view.quantizer is not None
        widest_O = latent_parameter(module, "weight").flatten(1).abs().amax(1)
        torch.testing.assert_close(view.quantizer.scale_O, widest_O / 127)
    first = next(iter(quantizers(network).values()))
    assert float(first.scale) == pytest.approx(float(builtin.images.abs().max()) / 127)


@torch.no_grad()
def test_least_squares_calibration_is_no_worse(builtin: Any) -> None:
    """Of every value, against what the float network computes there."""
    network = builtin.network
    attach_quantizers(network, Quantization(activation_bits=4))
    seen: dict[str, Tensor] = {}
    hooks = [
        q.register_forward_hook(lambda m, args, y, name=name: seen.update({name: y}))
        for name, q in quantizers(network).items()
    ]
    with use_view(network, View.LATENT):
        network(builtin.images)
    for hook in hooks:
        hook.remove()

    def squared() -> dict[str, float]:
        return {
            name: float((q(seen[name]) - seen[name]).square().sum())
            for name, q in quantizers(network).items()
        }

    def calibrated(method: Any) -> dict[str, float]:
        for name, quantizer in quantizers(network).items():
            quantizer.calibrate(seen[name], method)
        return squared()

    most, least = calibrated("max"), calibrated("mse")
    assert all(least[name] <= most[name] * (1 + 1e-5) for name in seen)
    assert sum(least.values()) < sum(most.values())


def test_calibration_keeps_mode_and_statistics(resnet: Any) -> None:
    network = resnet.network.train()
    attach_quantizers(network, Quantization())
    before = network.get_submodule("bn1").running_mean.clone()  # type: ignore[operator, union-attr]
    calibrate(network, [resnet.images])
    assert network.training
    assert torch.equal(network.get_submodule("bn1").running_mean, before)


@torch.no_grad()
def test_masked_channels_do_not_count_in_a_layers_step() -> None:
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    attach_quantizers(network, Quantization())
    last = network.get_submodule("2")
    view = weight_view(last)
    assert view is not None
    assert view.quantizer is not None
    latent_parameter(last, "weight")[:, 1] = 100.0
    view.keep_I[1] = False
    calibrate(network, [torch.randn(2, 3, 4, 4)])
    assert float(view.quantizer.scale_O.max()) < 0.1


def test_quantized_network_is_close_to_the_float_one(builtin: Any, quantize: Any) -> None:
    with torch.no_grad():
        want = builtin.network(builtin.images)
        got = quantize(builtin.network, builtin.images)(builtin.images)
    assert float((got - want).norm()) < 0.1 * float(want.norm())
    assert not torch.equal(got, want)
