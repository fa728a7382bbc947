"""Costs are what counting by hand gives, and a candidate's cost is that of the network it becomes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from toolchain.graph import trace
from toolchain.models import registry
from toolchain.structure.branches import find_branches
from toolchain.structure.cost import CostModel, measure, network_macs, network_parameters
from toolchain.structure.groups import find_groups
from toolchain.structure.slim import cut, plan_of


def test_counts_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),  # 8x8 to 4x4
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 64, 10),
    )
    layers = measure(network, (3, 8, 8)).layers
    macs = {
        name: layer.macs(layer.in_channels, layer.out_channels) for name, layer in layers.items()
    }
    assert macs == {"0": 16 * 8 * 27, "1": 0, "2": 16 * 8 * 9, "3": 16 * 8 * 4 * 4, "5": 2560}
    assert network_macs(network, (3, 8, 8)) == sum(macs.values())
    assert network_parameters(network) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "macs", "parameters"), [(20, 40_551_040, 269_722), (56, 125_485_696, 853_018)]
)
def test_published_networks(name: int, macs: int, parameters: int) -> None:
    network = registry.build("cifar_resnet", depth=name)
    assert network_macs(network, (3, 32, 32)) == macs
    assert network_parameters(network) == parameters


def test_a_layer_that_runs_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    assert network_macs(Twice(), (3, 4, 4)) == 2 * 16 * 9


def test_parameters_of_unknown_modules_are_counted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.GroupNorm(2, 4))
    assert network_parameters(network) == 16 + 4 + 8


def test_views_are_not_counted_as_parameters() -> None:
    network = nn.Sequential(nn.Linear(4, 5))

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5, 1))

        def forward(self, w_OI: Tensor) -> Tensor:
            return w_OI * self.scale

    nn.utils.parametrize.register_parametrization(network[0], "weight", Half())
    assert network_parameters(network) == 25


def test_measuring_leaves_modes_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    network[1].eval()
    before = network[1].running_mean.clone()
    measure(network, (3, 4, 4))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    assert torch.equal(network[1].running_mean, before)


RESNET = trace(registry.build("cifar_resnet", depth=14, width=4))
SHAPE = (3, 16, 16)
GROUPS = [group for group in find_groups(RESNET, SHAPE) if group.reason is None]
BRANCHES = find_branches(RESNET, SHAPE)
MODEL = CostModel(measure(RESNET, SHAPE), GROUPS, BRANCHES)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_candidate_costs_what_it_becomes(data: st.DataObject) -> None:
    kept = {group.name: data.draw(st.integers(1, group.channels)) for group in GROUPS}
    removed = [branch for branch in BRANCHES if data.draw(st.booleans())]
    plan = plan_of(
        RESNET,
        GROUPS,
        {name: range(count) for name, count in kept.items()},
        {branch.add: branch.kept for branch in removed},
    )
    becomes = measure(cut(RESNET, plan), SHAPE)
    assert MODEL.macs(kept, removed) == becomes.macs
    assert MODEL.parameters(kept, removed) == becomes.parameters


def test_nothing_cut_costs_the_whole() -> None:
    assert MODEL.share("macs", {}) == 1.0
    assert MODEL.macs({}) == network_macs(RESNET, SHAPE)
    with pytest.raises(ValueError, match="without a table"):
        MODEL.share("latency", {})
