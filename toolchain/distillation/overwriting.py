"""Whether a value of a traced network is overwritten after it was made, e.g. by ``ReLU(inplace=True)``.

Judged from the graph alone, and in doubt with yes: a needless copy costs a little, a feature that changed
after it was captured is wrong.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from toolchain.graph import module_of

# What may return its argument, or a tensor that shares its memory.
# fmt: off
_VIEWS = frozenset(
    {
        "as_strided", "chunk", "contiguous", "detach", "diagonal", "dropout", "expand",
        "expand_as", "flatten", "float", "getattr", "getitem", "movedim", "narrow", "permute",
        "ravel", "real", "reshape", "reshape_as", "select", "split", "squeeze", "swapaxes",
        "swapdims", "t", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unfold",
        "unsqueeze", "view", "view_as",
    }
)
# fmt: on
_VIEW_MODULES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_IN_PLACE = frozenset(
    {
        operator.iadd,
        operator.isub,
        operator.imul,
        operator.itruediv,
        operator.ifloordiv,
        operator.imod,
        operator.ipow,
        operator.iand,
        operator.ior,
        operator.ixor,
        operator.imatmul,
        operator.setitem,
    }
)


def is_overwritten(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether something that runs after ``node`` may write into the memory of its value."""
    base = node
    while base.all_input_nodes and _shares_memory(network, base):
        base = base.all_input_nodes[0]
    order = {other: position for position, other in enumerate(node.graph.nodes)}
    shared, waiting = {base}, [base]
    while waiting:
        one = waiting.pop()
        for user in one.users:
            if order[user] > order[node] and _writes_into(network, user, one):
                return True
            if user not in shared and _shares_memory(network, user):
                shared.add(user)
                waiting.append(user)
    return False


def _writes_into(network: fx.GraphModule, node: fx.Node, value: fx.Node) -> bool:
    if node.kwargs.get("out") is value:
        return True
    return _writes(network, node) and bool(node.args) and node.args[0] is value


def _writes(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` writes into its first argument."""
    if node.op == "call_module":
        return bool(getattr(module_of(network, node), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    # Of functions with such an argument, it is the last positional one: relu(x, True).
    flag = node.kwargs.get("inplace", node.args[-1] if len(node.args) > 1 else False)
    return node.target in _IN_PLACE or (name.endswith("_") and name[-2:] != "__") or flag is True


def _shares_memory(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the value of ``node`` may lie in the memory of its first argument."""
    if node.op == "call_module":
        module = module_of(network, node)
        foreign = not type(module).__module__.startswith("torch.nn.modules")
        return foreign or isinstance(module, _VIEW_MODULES) or _writes(network, node)
    if node.op in ("call_function", "call_method"):
        return _name(node) in _VIEWS or _writes(network, node)
    return False


def _name(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))
