"""Graphs keep module paths, and lose exactly what a removed branch computed."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from deploy.errors import StructureError
from toolchain import graph
from toolchain.models import registry
from toolchain.models.shortcut import PadShortcut

NETS = {
    "cifar_resnet": ({"depth": 8, "width": 4}, (3, 8, 8)),
    "vgg": ({"widths": [6, "M", 8]}, (3, 8, 8)),
    "mobilenet_v2": ({"multiplier": 0.25, "stages": [[2, 8, 2, 1]]}, (3, 8, 8)),
    "ds_cnn": ({"channels": 6, "blocks": 2}, (1, 20, 10)),
    "mlp": ({"hidden": [8], "input_shape": [1, 4, 4]}, (1, 4, 4)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_traced_network_has_the_same_paths_parameters_and_outputs(name: str) -> None:
    args, shape = NETS[name]
    model = registry.build(name, **args).eval()
    network = graph.trace(model)
    assert list(network.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(network.parameters(), model.parameters(), strict=True))
    assert not network.training
    x = torch.randn(2, *shape)
    assert torch.equal(network(x), model(x))
    assert graph.trace(network) is network


def test_a_pad_shortcut_is_one_node() -> None:
    network = graph.trace(registry.build("cifar_resnet", depth=8, width=4))
    found = list(graph.compute_nodes(network, (PadShortcut,)))
    assert [str(node.target) for node in found] == ["layer2.0.shortcut", "layer3.0.shortcut"]
    assert graph.moves_values(network, found[0])
    assert graph.is_relu(network, graph.origin(network, found[0]))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(input=x))
        y = torch.add(x, other=self.b(input=x))
        return torch.cat(tensors=[y, torch.flatten(input=y, start_dim=1)], dim=1)


@pytest.mark.parametrize("trace", [graph.trace, lambda net: graph.trace(fx.symbolic_trace(net))])
def test_tensors_given_by_keyword_are_found_like_others(trace: Any) -> None:
    model = Keywords()
    network = trace(model)
    x = torch.randn(2, 4)
    assert torch.equal(network(x), model(x))
    nodes = {node.name: node for node in network.graph.nodes}
    assert graph.origin(network, nodes["flatten"]) is nodes["add"]
    assert nodes["flatten"].kwargs == {"start_dim": 1}
    assert nodes["b"].args == (nodes["relu"],)
    graph.remove_branches(network, {"add": 1})
    y = model.b(F.relu(model.a(x)))
    assert torch.equal(network(x), torch.cat([y, y], dim=1))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("model", "message"),
    [(Branches(), "Branches.forward cannot be traced"), (Two(), "Two.forward takes 2 inputs")],
)
def test_what_cannot_be_a_graph_is_told_in_one_line(model: nn.Module, message: str) -> None:
    with pytest.raises(StructureError, match=message) as error:
        graph.trace(model)
    assert "\n" not in str(error.value)


class Kinds(nn.Module):
    """One of everything that is asked about, in the order of the flags below."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()
        self.clip, self.wide = nn.Hardtanh(0.0, 6.0), nn.Hardtanh(-1.0, 6.0)

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(x)
        b = F.relu(x)
        c = x.relu()
        d = torch.relu(x)
        e = self.relu6(x)
        f = F.relu6(x)
        g = self.clip(x)
        h = torch.clamp(x, 0, 6)
        i = x.clamp(min=0.0, max=6.0)
        j = F.hardtanh(x, 0.0, 6.0)
        k = self.wide(x)
        m = torch.clamp(x, 0, 5)
        n = x + 1
        return operator.add(a, b) + c + d + e + f + g + h + i + j + k + m + n


def test_kinds_of_nodes() -> None:
    network = graph.trace(Kinds())
    nodes = [n for n in network.graph.nodes if n.op not in ("placeholder", "output")]
    relus = [graph.is_relu(network, n) for n in nodes[:13]]
    relus6 = [graph.is_relu6(network, n) for n in nodes[:13]]
    assert relus == [True] * 4 + [False] * 9
    assert relus6 == [False] * 4 + [True] * 6 + [False] * 3
    adds = [n for n in nodes if graph.is_add(network, n)]
    assert len(adds) == 12  # and not x + 1, which adds a constant
    assert not graph.is_relu(network, "relu")


class Signs(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.pool, self.drop = how, nn.AvgPool2d(2), nn.Dropout(0.1)
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "moved relu":
            return torch.flatten(F.max_pool2d(F.pad(self.drop(F.relu(x)), (1, 1)), 2), 1)
        if self.how == "pooled relu6":
            return self.pool(F.relu6(x)).mean((2, 3))
        if self.how == "conv after relu":
            return self.conv(F.relu(x))
        if self.how == "concat of relus":
            return self.pool(torch.cat([F.relu(x), torch.cat([F.relu6(x)], 1)], 1))
        if self.how == "concat with the input":
            return torch.cat([F.relu(x), x], dim=1)
        if self.how == "sum":
            return F.relu(x) + x
        return x


@pytest.mark.parametrize(
    ("how", "known"),
    [
        ("moved relu", True),
        ("pooled relu6", True),
        ("conv after relu", False),
        ("concat of relus", True),
        ("concat with the input", False),
        ("sum", False),
        ("input", False),
    ],
)
def test_nonnegative_is_said_only_where_it_is_so(how: str, known: bool) -> None:
    network = graph.trace(Signs(how))
    (output,) = [n for n in network.graph.nodes if n.op == "output"]
    assert graph.is_nonnegative(network, output.args[0]) == known
    (start,) = [n for n in network.graph.nodes if n.op == "placeholder"]
    assert graph.is_nonnegative(network, start, lambda node: node is start)


def adds_of(network: fx.GraphModule) -> list[str]:
    return [n.name for n in network.graph.nodes if graph.is_add(network, n)]


def test_removing_branches_leaves_the_shortcuts() -> None:
    model = registry.build("cifar_resnet", depth=14, width=4).eval()
    network = graph.trace(model)
    adds = adds_of(network)
    graph.remove_branches(network, {adds[1]: 1, adds[2]: 1})
    x = torch.randn(2, 3, 8, 8)
    stem = F.relu(model.bn1(model.conv1(x)))
    wanted = model.layer2[1](model.layer2[0].shortcut(model.layer1[0](stem)))
    wanted = model.linear(model.layer3(wanted).mean((2, 3)))
    torch.testing.assert_close(network(x), wanted)
    paths = dict(network.named_modules())
    assert "layer1.1.conv1" not in paths and "layer2.0.bn2" not in paths
    assert "layer2.0.shortcut" in paths
    assert adds_of(network) == [adds[0], *adds[3:]]
    relus = sum(graph.is_relu(network, n) for n in network.graph.nodes)
    assert relus == 1 + 2 * 4  # the two behind the removed sums changed nothing any more


def test_a_relu_behind_a_signed_shortcut_stays() -> None:
    model = registry.build("cifar_resnet", depth=8, width=4, shortcut="conv").eval()
    network = graph.trace(model)
    graph.remove_branches(network, {adds_of(network)[1]: 1})
    x = torch.randn(2, 3, 8, 8)
    block = model.layer2[0]
    stem = model.layer1(F.relu(model.bn1(model.conv1(x))))
    wanted = model.linear(model.layer3(F.relu(block.shortcut(stem))).mean((2, 3)))
    torch.testing.assert_close(network(x), wanted)


def test_removing_nothing_changes_nothing() -> None:
    network = graph.trace(registry.build("cifar_resnet", depth=8, width=4))
    code = network.code
    graph.remove_branches(network, {})
    assert network.code == code


@pytest.mark.parametrize("name", ["nope", "relu"])
def test_a_branch_that_is_none_is_told(name: str) -> None:
    network = graph.trace(registry.build("cifar_resnet", depth=8, width=4))
    with pytest.raises(StructureError, match=f"'{name}' is not a residual add"):
        graph.remove_branches(network, {name: 0})
