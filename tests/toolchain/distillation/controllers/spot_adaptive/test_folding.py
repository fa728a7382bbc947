"""Batch norms inside convolutions: the same values, and none folded that must not be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolchain.distillation.controllers.spot_adaptive.folding import folded
from toolchain.distillation.slices import slice_network
from toolchain.graph import trace
from toolchain.models.cifar_resnet import cifar_resnet


def settled(network: nn.Module) -> nn.Module:
    """With batch norms that have seen something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.eval()


def norms(network: nn.Module) -> set[str]:
    return {
        str(node.target)
        for node in network.graph.nodes
        if node.op == "call_module"
        and isinstance(network.get_submodule(str(node.target)), nn.BatchNorm2d)
    }


@pytest.mark.parametrize("spots", [("layer1", "layer2"), ("bn1", "layer2"), ("conv1", "layer3")])
def test_every_piece_computes_the_same(spots: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    network = trace(settled(cifar_resnet(depth=8, width=4)))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    twin, x = folded(network, spots), torch.randn(3, 3, 8, 8)
    assert not any(p.requires_grad for p in twin.parameters())
    whole, cut = slice_network(network, spots), slice_network(twin, spots)
    for piece in range(len(whole)):
        expected = whole.run(x, piece, piece + 1)
        assert torch.allclose(cut.run(x, piece, piece + 1), expected, rtol=1e-4, atol=1e-4)
        x = expected
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_all_are_folded_but_those_at_a_spot() -> None:
    network = trace(settled(cifar_resnet(depth=8, width=4)))
    assert len(norms(network)) == 7
    assert norms(folded(network, ("layer1", "layer2"))) == set()
    assert norms(folded(network, ("conv1", "layer1.0.bn2"))) == {"bn1", "layer1.0.bn2"}


class Odd(nn.Module):
    """A convolution that is called twice, and one whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.read, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.twice(self.twice(x)))
        y = self.read(x)
        return (self.other(y) + y).mean((2, 3))


def test_what_would_change_elsewhere_is_left() -> None:
    network, x = trace(settled(Odd())), torch.randn(2, 3, 4, 4)
    twin = folded(network, ())
    assert norms(twin) == {"norm", "other"}
    assert torch.equal(twin(x), network(x))
