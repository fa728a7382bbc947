"""A network as a graph: traced once by torch.fx, with module paths unchanged, and cut where a branch goes.

Every stage after the teacher's import works on such a graph, because quantizers belong on *values*
(the output of a ReLU, both inputs of an add) and a user's ``forward`` names no values.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from deploy.errors import StructureError
from toolchain.models.shortcut import PadShortcut

ADD: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
RELU: frozenset[Any] = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"})
RELU6: frozenset[Any] = frozenset({F.relu6})
CONCAT: frozenset[Any] = frozenset({torch.cat, torch.concat})

# Operations that move or drop values but never make new ones, except zero: a grid survives them.
MOVES_MODULES = (
    nn.Flatten,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    PadShortcut,
)
MOVES: frozenset[Any] = frozenset(
    {
        operator.getitem,
        F.pad,
        F.dropout,
        torch.flatten,
        torch.reshape,
        torch.permute,
        torch.transpose,
        torch.squeeze,
        torch.unsqueeze,
        F.max_pool2d,
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "contiguous",
    }
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PadShortcut) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of ``model``; parameters are shared with it, module paths stay as they are.

    Tensors that it passes by keyword are passed by position afterwards.

    Raises:
        StructureError: ``forward`` depends on values or shapes in a way torch.fx cannot follow.
    """
    if isinstance(model, fx.GraphModule):
        _by_position(model)
        return model
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # torch.fx raises whatever the user's forward raises on a proxy
        reason = " ".join(str(error).split())
        raise StructureError(
            f"model: {type(model).__name__}.forward cannot be traced by torch.fx ({reason}); "
            "accepted is a forward without branches or loops that depend on tensor values; "
            "move such code out of forward or into a submodule"
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise StructureError(
            f"model: {type(model).__name__}.forward takes {len(inputs)} inputs; accepted is one "
            "tensor [B, C, H, W] in and logits [B, classes] out; wrap the model in such a module"
        )
    network = fx.GraphModule(tracer.root, graph, class_name=type(model).__name__)
    network.train(model.training)
    _by_position(network)
    return network


def _by_position(network: fx.GraphModule) -> None:
    """Pass every call's first two tensors by position, where each reader of the graph looks for them."""
    changed = False
    for node in network.graph.nodes:
        args, kwargs = list(node.args), dict(node.kwargs)
        if any(isinstance(value, fx.Node) for value in kwargs.values()):
            for name in _leading(network, node)[len(args) : 2]:
                if not isinstance(kwargs.get(name), fx.Node):
                    break
                args.append(kwargs.pop(name))
                changed = True
            node.args, node.kwargs = tuple(args), kwargs
    if changed:
        network.recompile()


def _leading(network: fx.GraphModule, node: fx.Node) -> tuple[str, ...]:
    """Names of what a call takes by position, in order."""
    if node.op not in ("call_function", "call_module"):
        return ()
    called = node.target if node.op == "call_function" else network.get_submodule(str(node.target))
    try:
        function = called.forward if isinstance(called, nn.Module) else called
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # torch's own in C have no signature, and these names
        return ("input", "other")
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):  # torch picks one of two
        return ("input", "other")
    return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)


def module_of(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a ``call_module`` node calls, or None for any other node."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def calls(
    network: fx.GraphModule,
    node: Any,
    functions: frozenset[Any],
    modules: type[nn.Module] | tuple[type[nn.Module], ...] = (),
) -> bool:
    """Whether ``node`` calls one of ``functions`` (or methods by name) or a module of these types."""
    if not isinstance(node, fx.Node):
        return False
    if node.op in ("call_function", "call_method"):
        return node.target in functions
    return bool(modules) and isinstance(module_of(network, node), modules)


def is_relu(network: fx.GraphModule, node: Any) -> bool:
    return calls(network, node, RELU, nn.ReLU)


def is_relu6(network: fx.GraphModule, node: Any) -> bool:
    if calls(network, node, RELU6, nn.ReLU6):
        return True
    clamps = calls(network, node, frozenset({F.hardtanh, torch.clamp, "clamp"}), nn.Hardtanh)
    if not clamps:
        return False
    module = module_of(network, node)
    if isinstance(module, nn.Hardtanh):
        return (module.min_val, module.max_val) == (0.0, 6.0)
    given = [*node.args[1:], *(v for k, v in node.kwargs.items() if k != "inplace")]
    return [float(bound) for bound in given if isinstance(bound, int | float)] == [0.0, 6.0]


def is_add(network: fx.GraphModule, node: Any) -> bool:
    """Whether ``node`` adds two tensors of the graph (not a constant)."""
    if not calls(network, node, ADD) or len(node.all_input_nodes) != 2:
        return False
    return all(source.op != "get_attr" for source in node.all_input_nodes)


def moves_values(network: fx.GraphModule, node: Any) -> bool:
    """Whether ``node`` only moves values of its first input (or inserts zeros)."""
    return calls(network, node, MOVES, MOVES_MODULES)


def origin(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Where the values of ``node`` were made: back through operations that only move them."""
    while moves_values(network, node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def is_nonnegative(
    network: fx.GraphModule, node: fx.Node, known: Callable[[fx.Node], bool] = lambda node: False
) -> bool:
    """Whether the values of ``node`` cannot be below zero, as far as its graph tells."""
    pools = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    pooling = frozenset({F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"})
    node = origin(network, node)
    while calls(network, node, pooling, pools) and isinstance(node.args[0], fx.Node):
        node = origin(network, node.args[0])
    if known(node) or is_relu(network, node) or is_relu6(network, node):
        return True
    parts = node.all_input_nodes if calls(network, node, CONCAT) else []
    return bool(parts) and all(is_nonnegative(network, part, known) for part in parts)


def compute_nodes(network: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> Iterator[fx.Node]:
    """Every node that calls a module of these kinds, in the order of execution."""
    for node in network.graph.nodes:
        if isinstance(module_of(network, node), kinds):
            yield node


def remove_branches(network: fx.GraphModule, removed: Mapping[str, int]) -> None:
    """Replace each residual add by the argument that stays, in place, and drop what is then unused.

    A ReLU after the add goes too where its input is a ReLU's output already: it changes nothing.

    Raises:
        StructureError: A name is not an add of this graph.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    for name, kept in removed.items():
        node = nodes.get(name)
        if node is None or not is_add(network, node):
            adds = [n.name for n in network.graph.nodes if is_add(network, n)]
            raise StructureError(
                f"branch: {name!r} is not a residual add of this network; accepted are "
                f"{adds}; check that the checkpoint and its constructor belong together"
            )
        stays = node.args[kept]
        assert isinstance(stays, fx.Node)
        for user in list(node.users):
            if is_relu(network, user) and is_nonnegative(network, stays):
                user.replace_all_uses_with(stays)
                network.graph.erase_node(user)
        node.replace_all_uses_with(stays)
        network.graph.erase_node(node)
    if removed:
        network.graph.eliminate_dead_code()
        network.delete_all_unused_submodules()
        network.recompile()
