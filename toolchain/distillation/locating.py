"""Where a spot lies in a traced network: the node that computes what a module's path stands for.

A module that is called as one is the node of its last call. A container is never called in a traced
network: its output is the one value made inside it, in its last call, that something outside reads.
Quantizers belong to the module whose value they put on a grid, so a container's output is on the grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

from torch import fx, nn

from deploy.errors import ConfigError
from toolchain.graph import module_of
from toolchain.quantization.activations import ActivationQuantizer

LOGITS, PENULTIMATE = "logits", "penultimate"
LISTED = "`compress-deploy list spots RECIPE` lists all"


def places(network: fx.GraphModule, graph: fx.Graph) -> dict[str, fx.Node]:
    """Every module whose one output the forward pass computes, in the order of execution.

    Modules come before the containers whose output they compute. ``graph`` is over the modules of
    ``network``: its own graph, or one derived from it. Quantizers are not listed.
    """
    found = {
        path: outputs[0]
        for path, outputs in _outputs(graph).items()
        if len(outputs) == 1
        and not (
            outputs[0].target == path
            and isinstance(module_of(network, outputs[0]), ActivationQuantizer)
        )
    }
    order = {node: position for position, node in enumerate(graph.nodes)}
    return dict(sorted(found.items(), key=lambda item: (order[item[1]], -item[0].count("."))))


def locate(network: fx.GraphModule, graph: fx.Graph, spot: str) -> fx.Node:
    """The node of ``graph``, which is over the network's modules, whose value is at ``spot``.

    Raises:
        ConfigError: There is none, or it has several values.
    """
    if spot == LOGITS:
        return _logits(graph)
    if spot == PENULTIMATE:
        return _penultimate(network, graph)
    outputs = _outputs(graph).get(spot, [])
    if len(outputs) == 1:
        return outputs[0]
    if outputs:
        raise ConfigError(
            f"distil.spot: {spot!r} gives {len(outputs)} values; a single tensor is needed; "
            "choose a module inside it"
        )
    raise absent(network, spot, places(network, graph))


def absent(network: nn.Module, spot: str, known: Iterable[str]) -> ConfigError:
    """The error for a path or a pattern that names nothing among ``known``, with the nearest."""
    names = [*known, LOGITS, PENULTIMATE]
    # Of those that look alike, the one that begins alike: paths end in the same few names.
    near = get_close_matches(spot, names, n=20, cutoff=0.5)
    nearest = (
        f"did you mean {max(near, key=lambda name: _alike(name, spot))!r}?"
        if near
        else f"accepted are e.g. {', '.join(names[-3:])};"
    )
    if _stood_here(network, spot):
        why = "is not reached by the forward pass, because nothing of it remains in this network"
    elif is_pattern(spot):
        why = "matches no module that the forward pass reaches; a * does not go across a dot"
    else:
        why = "is not a module of this network"
    return ConfigError(f"distil.spot: {spot!r} {why}; {nearest} {LISTED}")


def is_pattern(spot: str) -> bool:
    """Whether ``spot`` may stand for several modules."""
    return any(sign in spot for sign in "*?[")


def _alike(name: str, spot: str) -> int:
    """With how many of the same characters both begin."""
    pairs = zip(name, spot, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _stood_here(network: nn.Module, path: str) -> bool:
    """Whether there is, or was before branches were removed, a module at ``path``."""
    modules = dict(network.named_modules())
    parent, _, name = path.rpartition(".")
    if path in modules or not name.isdigit() or parent not in modules:
        return path in modules
    later = [child for child, _ in modules[parent].named_children() if child.isdigit()]
    return any(int(child) > int(name) for child in later)


def _outputs(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Of each path that the forward pass enters, what its last call gives to the outside."""
    called: dict[str, fx.Node] = {}
    entered: dict[str, dict[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        for call, path in _scopes(node):
            entered.setdefault(path, {}).setdefault(call, []).append(node)
        if node.op == "call_module":
            called[str(node.target)] = node
    found = {path: [node] for path, node in called.items()}
    for path, calls in entered.items():
        if path not in called:
            inside = list(calls.values())[-1]
            of_it = set(inside)
            found[path] = [n for n in inside if not of_it.issuperset(n.users)] or inside[-1:]
    return found


def _scopes(node: fx.Node) -> Iterator[tuple[str, str]]:
    """The calls of modules that ``node`` is part of, outermost first: name of the call, and path."""
    stack: Mapping[str, Any] | None = node.meta.get("nn_module_stack")
    if stack is not None:
        yield from ((call, path) for call, (path, _) in stack.items() if path)
    elif node.op == "call_module":  # from a tracer that kept no stacks
        parts = str(node.target).split(".")
        yield from ((path, path) for path in (".".join(parts[:n]) for n in range(1, len(parts))))


def _logits(graph: fx.Graph) -> fx.Node:
    (output,) = (node for node in graph.nodes if node.op == "output")
    value = output.args[0]
    if not isinstance(value, fx.Node):
        raise ConfigError(
            f"distil.spot: {LOGITS!r} gives {type(value).__name__}; a single tensor is needed; "
            "wrap the model in a module that returns its logits"
        )
    return value


def has_penultimate(network: nn.Module) -> bool:
    """Whether the network has a linear layer, which the forward pass reaches if it is traced."""
    if isinstance(network, fx.GraphModule):
        return any(isinstance(module_of(network, node), nn.Linear) for node in network.graph.nodes)
    return any(isinstance(module, nn.Linear) for module in network.modules())


def _penultimate(network: fx.GraphModule, graph: fx.Graph) -> fx.Node:
    for node in reversed(graph.nodes):
        if isinstance(module_of(network, node), nn.Linear):
            return node.all_input_nodes[0]
    raise no_linear()


def no_linear() -> ConfigError:
    """The error for a network that has no penultimate spot."""
    return ConfigError(
        f"distil.spot: {PENULTIMATE!r} needs a linear layer and the network has none; "
        "name a module path"
    )
