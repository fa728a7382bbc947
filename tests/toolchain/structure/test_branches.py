"""Branches of residual adds: what is found, what is safe, and what is left when one goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.graph import trace
from toolchain.models import registry
from toolchain.structure.branches import branch_contributions, find_branches
from toolchain.structure.plan import ChannelPlan
from toolchain.structure.slim import cut


class Adds(nn.Module):
    """One block whose sum is written in the way under test."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        if self.how == "operator":
            z = y + x
        elif self.how == "reversed":
            z = x + y
        elif self.how == "inplace":
            y += x
            z = y
        elif self.how == "function":
            z = torch.add(x, y)
        elif self.how == "method":
            z = y.add_(x)
        else:
            z = torch.add(x, y, alpha=2)
        return self.head(F.relu(z))


@pytest.mark.parametrize("how", ["operator", "reversed", "inplace", "function", "method"])
def test_every_spelling_of_an_add(how: str) -> None:
    network = trace(Adds(how))
    (branch,) = find_branches(network, (3, 6, 6))
    assert (branch.name, branch.reason) == ("block", None)
    assert branch.modules == ("block.0", "block.1", "block.2")
    slim = cut(network, ChannelPlan(removed={branch.add: branch.kept}))
    x = torch.randn(2, 3, 6, 6)
    model = Adds(how)
    model.load_state_dict(network.state_dict())
    torch.testing.assert_close(slim(x), model.head(F.relu(model.stem(x))))


def test_a_scaled_add_stays() -> None:
    (branch,) = find_branches(trace(Adds("scaled")), (3, 6, 6))
    assert "arguments" in str(branch.reason)


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_resnet_blocks(shortcut: str) -> None:
    network = trace(registry.build("cifar_resnet", depth=14, width=4, shortcut=shortcut))
    branches = find_branches(network, (3, 16, 16))
    assert [branch.name for branch in branches] == [
        f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)
    ]
    for branch in branches:
        assert branch.reason is None
        assert [name.rsplit(".", 1)[1] for name in branch.modules] == [
            "conv1",
            "bn1",
            "conv2",
            "bn2",
        ]


def test_removed_block_leaves_its_shortcut() -> None:
    model = registry.build("cifar_resnet", depth=8, width=4).eval()
    network = trace(model)
    branch = find_branches(network, (3, 16, 16))[1]
    slim = cut(network, ChannelPlan(removed={branch.add: branch.kept}))
    block = model.layer2[0]
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
        x = torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(slim(x), model(x))
    assert not any(name.startswith("layer2.0.conv") for name, _ in slim.named_modules())


class Leaks(nn.Module):
    """The inside of the branch is used again further down."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.two = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.one(x)
        return (x + self.two(inside)) * inside


def test_a_branch_used_elsewhere_stays() -> None:
    (branch,) = find_branches(trace(Leaks()), (3, 4, 4))
    assert "also used by" in str(branch.reason)


class Broadcasts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) + self.one(x)


def test_a_shortcut_of_another_shape_cannot_stand_alone() -> None:
    (branch,) = find_branches(trace(Broadcasts()), (3, 4, 4))
    assert "shape" in str(branch.reason)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.shift = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.shift + 1


def test_adding_a_parameter_or_a_number_is_no_branch() -> None:
    assert find_branches(trace(Plain()), (3, 4, 4)) == []


def test_two_blocks_of_one_name_are_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.body[1](self.body[0](x))
            return x + self.body[3](self.body[2](x))

    names = [branch.name for branch in find_branches(trace(Twice()), (3, 4, 4))]
    assert names == ["body", "body#2"]


def test_contribution_is_the_share_of_energy() -> None:
    network = trace(Adds("operator")).eval()
    (branch,) = find_branches(network, (3, 6, 6))
    with torch.no_grad():
        for parameter in network.get_submodule("block").parameters():
            parameter.zero_()
        network.get_submodule("block.2").bias.fill_(1.0)
        network.get_submodule("stem").weight.zero_()
        network.get_submodule("stem").bias.fill_(2.0)
    batches = [torch.randn(2, 3, 6, 6), torch.randn(3, 3, 6, 6)]
    assert branch_contributions(network, [branch], batches) == {"block": pytest.approx(1 / 5)}
    assert branch_contributions(network, [branch], []) == {"block": 0.0}
