"""Whether a value is overwritten later, judged from the graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from toolchain import graph
from toolchain.distillation.overwriting import is_overwritten
from toolchain.models import registry


@fx.wrap
def drop_path(y: Tensor) -> Tensor:
    """Of the user's and not traced: it may return its argument."""
    return y


@fx.wrap
def halve(y: Tensor) -> Tensor:
    """Likewise: it may write into its argument."""
    return y.mul_(0.5)


class Conv(nn.Module):
    """What comes after a convolution."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x))


def of_conv(after: Callable[[Tensor], Tensor]) -> bool:
    network = graph.trace(Conv(after))
    (conv,) = (node for node in network.graph.nodes if node.op == "call_module")
    return is_overwritten(network, conv)


def statement(y: Tensor) -> Tensor:
    F.relu_(y)
    return y


def into_a_copy(y: Tensor) -> Tensor:
    z = y.clone()
    z += 1
    return z


def as_second_argument(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z += y
    return z


@pytest.mark.parametrize(
    "after",
    [
        statement,
        lambda y: y.view(-1).add_(1),
        lambda y: y[:, 0].transpose(0, 1).mul_(2),
        lambda y: F.dropout(y, training=False).relu_(),
        lambda y: torch.add(y * 2, 1, out=y),
        lambda y: F.dropout2d(y, training=False).relu_(),
        lambda y: torch.broadcast_to(y.moveaxis(1, 3), (1, 4, 4, 1)).relu_(),
        lambda y: F.relu(input=y, inplace=True),
        lambda y: drop_path(y).relu_(),
        lambda y: halve(y) + 1,
    ],
)
def test_what_writes_into_the_memory_of_a_value_is_found(after: Callable[[Tensor], Tensor]) -> None:
    assert of_conv(after)


@pytest.mark.parametrize(
    "after",
    [
        torch.relu,
        into_a_copy,
        as_second_argument,
        lambda y: (y + 1).relu_(),
        lambda y: y.flatten(1).mean(1).__add__(1),
    ],
)
def test_what_writes_elsewhere_is_not(after: Callable[[Tensor], Tensor]) -> None:
    assert not of_conv(after)


def test_what_was_written_before_does_not_count() -> None:
    network = fx.symbolic_trace(
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True), nn.Flatten())
    )
    conv, relu, flat = (node for node in network.graph.nodes if node.op == "call_module")
    assert is_overwritten(network, conv)
    assert not is_overwritten(network, relu)
    assert not is_overwritten(network, flat)


@pytest.mark.parametrize("name", ["cifar_resnet", "mobilenet_v2", "vgg", "ds_cnn", "vit", "mixer"])
def test_nothing_in_the_built_in_networks_is_overwritten(name: str) -> None:
    network = graph.trace(registry.build(name))
    assert not any(is_overwritten(network, node) for node in network.graph.nodes)
