"""The weighted sides of residual adds: what may be removed as a whole, so that the network gets shallower.

y = shortcut(x) + branch(x)    becomes    y = shortcut(x)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from toolchain.graph import is_add
from toolchain.structure.cost import evaluating
from toolchain.structure.plan import Branch


def find_branches(network: fx.GraphModule, input_shape: Sequence[int]) -> list[Branch]:
    """The branch of every residual add, in the order of execution.

    An add is residual if both arguments come from one value. Its branch is the side with weights; if
    both have some (a projection shortcut), the one with more weighted layers, then more parameters.
    """
    shapes = _Shapes(network).shapes_of(input_shape)
    ancestors = _ancestors(network.graph)
    owners: dict[str, set[fx.Node]] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            owners.setdefault(str(node.target), set()).add(node)
    found: list[Branch] = []
    names: dict[str, int] = {}
    for node in network.graph.nodes:
        if not is_add(network, node):
            continue
        one, two = node.all_input_nodes
        common = ancestors[one] & ancestors[two]
        if not any(node.op != "get_attr" for node in common):
            continue
        sides = [
            [n for n in network.graph.nodes if n in ancestors[a] and n not in ancestors[b]]
            for a, b in ((one, two), (two, one))
        ]
        weights = [_weights(network, side) for side in sides]
        if not any(weights):
            continue
        gone = max((0, 1), key=lambda i: (len(weights[i]), sum(weights[i].values()), i == 0))
        modules = tuple(name for name, nodes in owners.items() if nodes <= set(sides[gone]))
        name = _shared_path(list(weights[gone]))
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        reason = _reason(node, sides[gone], (one, two)[1 - gone], shapes)
        kept = 1 - gone
        found.append(Branch(name, node.name, kept, modules, reason))
    return found


def branch_contributions(
    network: fx.GraphModule, branches: Sequence[Branch], batches: Sequence[Tensor]
) -> dict[str, float]:
    """How much of each residual sum its branch makes, in [0, 1], over these batches of inputs.

        contribution = |branch|^2 / (|branch|^2 + |shortcut|^2)

    Greff et al. 2017, "Highway and Residual Networks learn Unrolled Iterative Estimation",
    https://arxiv.org/abs/1612.07771: most blocks of a stage refine their input by little.
    """
    runner = _Energies(network, {branch.add: branch for branch in branches})
    with evaluating(network):
        for batch in batches:
            runner.run(batch)
    return {branch.name: runner.share(branch) for branch in branches}


def _ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Every node's ancestors and itself."""
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        found[node] = {node}.union(*(found[source] for source in node.all_input_nodes))
    return found


def _weights(network: fx.GraphModule, side: Sequence[fx.Node]) -> dict[str, int]:
    """Parameters of each module on this side that has a weight matrix or kernel."""
    weights: dict[str, int] = {}
    for node in side:
        if node.op != "call_module":
            continue
        module = network.get_submodule(str(node.target))
        if any(parameter.dim() > 1 for parameter in module.parameters()):
            weights[str(node.target)] = sum(p.numel() for p in module.parameters())
    return weights


def _shared_path(names: Sequence[str]) -> str:
    """The longest module path shared by these names; the first name where they share nothing."""
    if len(names) == 1:
        return names[0]
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or names[0]


def _reason(
    add: fx.Node, side: Sequence[fx.Node], stays: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]
) -> str | None:
    inside = set(side)
    for node in side:
        for user in node.users:
            if user is not add and user not in inside:
                return f"{node.name} is also used by {user.name}"
    if shapes.get(stays) != shapes.get(add):
        return (
            f"{stays.name} has shape {list(shapes.get(stays, ()))} and the sum "
            f"{list(shapes.get(add, ()))}"
        )
    if add.kwargs or len(add.args) != 2:
        return "the add has more arguments than its two tensors"
    if add.all_input_nodes != list(add.args):
        return "the add scales or reorders its arguments"
    return None


class _Shapes(fx.Interpreter):
    """Runs a graph once and notes the shape of every tensor."""

    def shapes_of(self, input_shape: Sequence[int]) -> dict[fx.Node, tuple[int, ...]]:
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        assert isinstance(self.module, nn.Module)
        dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
        with evaluating(self.module):
            self.run(torch.zeros(2, *input_shape, dtype=dtype))
        return self._shapes

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self._shapes[n] = tuple(value.shape)
        return value


class _Energies(fx.Interpreter):
    """Runs a graph and sums the squares of both arguments of residual adds."""

    def __init__(self, network: fx.GraphModule, branches: Mapping[str, Branch]) -> None:
        super().__init__(network)
        self._branches = branches
        self._sums: dict[str, list[float]] = {add: [0.0, 0.0] for add in branches}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._branches:  # before an in-place add changes its argument
            for place, source in enumerate(n.all_input_nodes):
                self._sums[n.name][place] += float(self.env[source].float().square().sum())
        return super().run_node(n)

    def share(self, branch: Branch) -> float:
        kept = self._sums[branch.add][branch.kept]
        gone = self._sums[branch.add][1 - branch.kept]
        return gone / (gone + kept) if gone + kept > 0 else 0.0
