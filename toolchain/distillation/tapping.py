"""A traced network whose forward pass also hands out what it computes on the way.

A tapped copy of the graph, over the same modules, is compiled once and run as the instance's ``forward``
for as long as somebody watches: one pass, and no hook. Modules are called on the network itself, so views,
modes and parametrizations are the ones that it has at that moment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx

from deploy.errors import ConfigError
from toolchain.distillation.locating import locate
from toolchain.distillation.overwriting import is_overwritten
from toolchain.quantization.residual_kernels import fuse, is_fused, whole

# Called with the network and its input.
Forward = Callable[..., Any]
Watcher = tuple[tuple[str, ...], dict[str, Tensor]]

# Of each graph: the code that it was compiled to, and what was derived from it since.
_DERIVED: WeakKeyDictionary[fx.Graph, tuple[str, dict[object, Forward]]] = WeakKeyDictionary()
_WATCHERS: WeakKeyDictionary[fx.GraphModule, list[Watcher]] = WeakKeyDictionary()


@contextmanager
def tapped(network: fx.GraphModule, spots: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While open, each forward pass leaves the values at ``spots`` in the dict; contexts may nest.

    Raises:
        ConfigError: A spot that the network does not have or does not reach; in a forward pass, a value
            that is not one tensor.
    """
    found: dict[str, Tensor] = {}
    tapped_forward(network, tuple(spots))  # names a wrong spot before anything is changed
    watchers = _WATCHERS.setdefault(network, [])
    watcher: Watcher = (tuple(spots), found)
    watchers.append(watcher)
    if len(watchers) == 1:
        assert "forward" not in vars(network), "somebody else replaced this network's forward"
        vars(network)["forward"] = _watched(network, watchers)
    try:
        yield found
    finally:
        watchers[:] = [other for other in watchers if other is not watcher]
        if not watchers:
            del vars(network)["forward"]


def tapped_forward(network: fx.GraphModule, spots: tuple[str, ...]) -> Forward:
    """``function(network, x) -> (output, *values)``, for the graph that the network has now."""

    def build() -> fx.Graph:
        graph = copy.deepcopy(whole(network))
        (output,) = (node for node in graph.nodes if node.op == "output")
        nodes = [locate(network, graph, spot) for spot in spots]
        copies: dict[fx.Node, fx.Node] = {}
        for node in dict.fromkeys(nodes):
            if is_overwritten(network, node):
                with graph.inserting_after(node):
                    copies[node] = graph.call_function(copied, (node,))
        output.args = ((output.args[0], *(copies.get(node, node) for node in nodes)),)
        return graph

    return derived(network, ("taps", spots), build)


def derived(network: fx.GraphModule, key: object, build: Callable[[], fx.Graph]) -> Forward:
    """The forward function of a graph that ``build`` derives from the network's; built once.

    Inside `fused_adds` the adds of the derived graph are fused too, except where an output would vanish.
    """
    graph = network.graph
    if graph not in _DERIVED or _DERIVED[graph][0] != network.code:
        _DERIVED[graph] = network.code, {}
    forwards = _DERIVED[graph][1]
    if key not in forwards:
        made = build()
        if is_fused(network):
            fuse(network, made)
        # Only the function is kept: it runs on the network, whose buffers may be replaced at any time.
        forwards[key] = type(fx.GraphModule(network, made)).forward
    return forwards[key]


def copied(value: Any) -> Any:
    """A tensor's copy, which nothing overwrites; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) else value


def require_tensor(spot: str, value: object) -> Tensor:
    """``value`` if it is a tensor.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"distil.spot: {spot!r} gives {type(value).__name__}; a single tensor is needed; "
            "choose a module inside it"
        )
    return value


def _watched(network: fx.GraphModule, watchers: list[Watcher]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        spots = tuple(dict.fromkeys(spot for spots, _ in watchers for spot in spots))
        output, *values = tapped_forward(network, spots)(network, *args, **kwargs)
        for spot, value in zip(spots, values, strict=True):
            for wanted, found in watchers:
                if spot in wanted:
                    found[spot] = require_tensor(spot, value)
        return output

    return forward
