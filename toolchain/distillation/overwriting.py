"""Whether a value of a traced network is overwritten after it was made, e.g. by ``ReLU(inplace=True)``.

Judged from the graph alone, and in doubt with yes: a needless copy costs a little, a feature that changed
after it was captured is wrong.
"""

from __future__ import annotations

import operator
import re

from torch import fx, nn

from toolchain.graph import module_of

# What may return its argument, or a tensor that shares its memory.
# fmt: off
_VIEWS = frozenset(
    {
        "adjoint", "alpha_dropout", "as_strided", "atleast_1d", "atleast_2d", "atleast_3d",
        "bfloat16", "broadcast_to", "chunk", "contiguous", "cpu", "cuda", "detach", "diagonal",
        "double", "dropout", "dropout1d", "dropout2d", "dropout3d", "dsplit", "expand",
        "expand_as", "feature_alpha_dropout", "feature_dropout", "flatten", "float", "getattr",
        "getitem", "half", "hsplit", "imag", "moveaxis", "movedim", "narrow", "permute", "ravel",
        "real", "reshape", "reshape_as", "select", "split", "squeeze", "swapaxes", "swapdims", "t",
        "tensor_split", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unfold",
        "unsqueeze", "view", "view_as", "view_as_complex", "view_as_real", "vsplit",
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
    order = {other: position for position, other in enumerate(node.graph.nodes)}
    shared, waiting = set[fx.Node](), [node]
    while waiting:
        one = waiting.pop()
        if one in shared:
            continue
        shared.add(one)
        waiting += _sources(network, one)
        for user in one.users:
            if order[user] > order[node] and _writes_into(network, user, one):
                return True
            if one in _sources(network, user):
                waiting.append(user)
    return False


def _writes_into(network: fx.GraphModule, node: fx.Node, value: fx.Node) -> bool:
    if node.kwargs.get("out") is value or _is_foreign(node):
        return True
    return _writes(network, node) and node.all_input_nodes[0] is value


def _is_foreign(node: fx.Node) -> bool:
    """Whether it calls a function of the user's, of which nothing is known."""
    module = str(getattr(node.target, "__module__", ""))
    return node.op == "call_function" and not re.match(
        r"(torch|_operator|builtins|math|toolchain)\b", module
    )


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


def _sources(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Those of its arguments in whose memory the value of ``node`` may lie."""
    if node.op == "call_module":
        module = module_of(network, node)
        foreign = not type(module).__module__.startswith("torch.nn.modules")
        shares = foreign or isinstance(module, _VIEW_MODULES) or _writes(network, node)
    else:
        shares = _name(node) in _VIEWS or _writes(network, node)
    return node.all_input_nodes if _is_foreign(node) else node.all_input_nodes[: int(shares)]


def _name(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))
