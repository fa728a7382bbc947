"""Spots: features by path, and the adapters between unequal shapes."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from deploy.errors import ConfigError
from toolchain.distillation.spots import adapter, capture, shapes


def network(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, channels, 3, padding=1),
            norm=nn.BatchNorm2d(channels),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(channels, 5),
        )
    )


def test_features_are_what_the_modules_compute() -> None:
    net, x = network().eval(), torch.randn(2, 3, 6, 6)
    with capture(net, ["conv", "penultimate", "logits"]) as found:
        logits = net(x)
    assert torch.equal(found["conv"], net.conv(x))
    assert torch.equal(found["penultimate"], net[:4](x))
    assert found["logits"] is logits


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    net = network()
    with pytest.raises(RuntimeError), capture(net, ["conv", "penultimate", "logits"]):
        net(torch.randn(2, 9, 6, 6))
    modules = list(net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_a_traced_network_is_captured_by_the_same_paths() -> None:
    net, x = network().eval(), torch.randn(2, 3, 6, 6)
    traced = torch.fx.symbolic_trace(net)
    with capture(traced, ["norm"]) as found:
        traced(x)
    assert torch.equal(found["norm"], net[:2](x))


def test_an_unknown_path_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'conv'"), capture(network(), ["cnv"]):
        pass


def test_penultimate_needs_a_linear_layer() -> None:
    with (
        pytest.raises(ConfigError, match="linear"),
        capture(nn.Sequential(nn.ReLU()), ["penultimate"]),
    ):
        pass


def test_a_module_that_returns_no_tensor_is_refused() -> None:
    net = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(ConfigError, match="tuple"), capture(net, ["0"]):
        net(torch.randn(2, 5, 3))


def test_a_module_that_is_not_called_is_refused() -> None:
    net = network()
    net.conv.spare = nn.ReLU()
    with pytest.raises(ConfigError, match="not reached"):
        shapes(net, ["conv.spare"], torch.randn(1, 3, 6, 6))


def test_shapes_leaves_statistics_and_modes_alone() -> None:
    net = network().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = shapes(net, ["conv", "logits"], torch.randn(2, 3, 6, 6))
    assert {k: tuple(v) for k, v in found.items()} == {"conv": (2, 4, 6, 6), "logits": (2, 5)}
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("tail", [(), (6, 6)])
def test_an_adapter_joins_unequal_channels(tail: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, 4, *tail), torch.randn(2, 9, *tail)
    joined = adapter(student.shape, teacher.shape, "shape", "x")
    assert joined is not None
    assert joined(student).shape == teacher.shape


def test_no_adapter_where_none_is_needed() -> None:
    a, b = torch.Size((2, 4, 6, 6)), torch.Size((2, 9, 6, 6))
    assert adapter(a, a, "shape", "x") is None
    assert adapter(a, b, "positions", "x") is None


def test_vectors_have_no_positions_to_compare() -> None:
    with pytest.raises(ConfigError, match="positions"):
        adapter(torch.Size((2, 4)), torch.Size((2, 4)), "positions", "penultimate")


@pytest.mark.parametrize(
    ("student", "teacher", "spot"),
    [((2, 4, 6, 6), (2, 4, 3, 3), "x"), ((2, 5), (2, 7), "logits"), ((2, 4), (2, 4, 3, 3), "x")],
)
def test_shapes_that_no_adapter_joins_are_both_named(
    student: tuple[int, ...], teacher: tuple[int, ...], spot: str
) -> None:
    with pytest.raises(ConfigError) as error:
        adapter(torch.Size(student), torch.Size(teacher), "shape", spot)
    assert str(student[1:]) in str(error.value)
    assert str(teacher[1:]) in str(error.value)
