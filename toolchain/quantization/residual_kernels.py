"""A residual add between two quantizers in one pass forward and one pass backward.

    forward    x = Q_a(a) + b,    y = Q_y(x)
    backward   db = dy  where x is inside Q_y's range, else 0
               da = db  where a is inside Q_a's range, else 0
               each step as in `kernels`, from dy for Q_y and from db for Q_a

Apart from each other, the quantizers and the add read and write memory seven times forward and six
backward; here it is four and five. The values are the same to the last bit, half-precision rounding of
the sum included; sums for learned steps are taken in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from toolchain import graph
from toolchain.quantization import kernels
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import quantizer_of
from toolchain.quantization.kernels import Grid

PREFIX = "quantized_adds"
# Inductor would otherwise keep the sum in float32.
EXACT: dict[str, Any] = {"emulate_precision_casts": True}


def _sum(a: Tensor, b: Tensor, s_a: Tensor, grid_a: Grid) -> Tensor:
    return kernels.quantize(a, s_a, grid_a) + b


@cache
def _kernels(grid_a: Grid, grid_y: Grid) -> tuple[Any, Any, Any]:
    """Forward, backward, and the widest sum, compiled."""

    def forward(a: Tensor, b: Tensor, s_a: Tensor, s_y: Tensor) -> tuple[Tensor, Tensor]:
        x = _sum(a, b, s_a, grid_a)
        return kernels.quantize(x, s_y, grid_y), x

    def backward(
        dy: Tensor, a: Tensor, x: Tensor, s_a: Tensor, s_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The sum is kept: computing it again takes longer than reading it.
        db, ds_y = kernels.gradients(dy, x, s_y, grid_y)
        da, ds_a = kernels.gradients(db, a, s_a, grid_a)
        return da, db, ds_a, ds_y

    def widest(a: Tensor, b: Tensor, s_a: Tensor) -> Tensor:
        return kernels.widest(_sum(a, b, s_a, grid_a), grid_y)

    return (
        torch.compile(forward, dynamic=True, options=EXACT),
        torch.compile(backward, dynamic=True, options=EXACT),
        torch.compile(widest, dynamic=True, options=EXACT),
    )


class _QuantizedAdd(torch.autograd.Function):
    """``apply(a, b, s_a, s_y, grid_a, grid_y)``; a and b of one shape and layout, bf16."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        a: Tensor,
        b: Tensor,
        s_a: Tensor,
        s_y: Tensor,
        grid_a: Grid,
        grid_y: Grid,
    ) -> Tensor:
        forward = _kernels(grid_a, grid_y)[0]
        y_N, x_N = forward(kernels.flat(a), kernels.flat(b), s_a, s_y)
        ctx.save_for_backward(a, x_N, s_a, s_y)
        ctx.grids = grid_a, grid_y  # type: ignore[attr-defined]
        return kernels.like(y_N, a)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        a, x_N, s_a, s_y = ctx.saved_tensors  # type: ignore[attr-defined]
        grid_a, grid_y = ctx.grids  # type: ignore[attr-defined]
        backward = _kernels(grid_a, grid_y)[1]
        flat_dy = kernels.flat(kernels.same_layout(dy, a))
        da, db, ds_a, ds_y = backward(flat_dy, kernels.flat(a), x_N, s_a, s_y)
        return (
            kernels.like(da, a),
            kernels.like(db, a),
            kernels.step_gradient(ds_a, s_a, a, grid_a),
            kernels.step_gradient(ds_y, s_y, a, grid_y),
            None,
            None,
        )


class QuantizedAdd(nn.Module):
    """Both quantizers of an add and the add itself; holds no tensor, and does not own the quantizers."""

    def __init__(self, inner: ActivationQuantizer, outer: ActivationQuantizer) -> None:
        super().__init__()
        self._pair = inner, outer  # in a tuple: they are the network's modules, not this one's

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        inner, outer = self._pair
        plain = (
            inner.quantizes()
            and outer.quantizes()
            and a.dtype is b.dtype is torch.bfloat16
            and a.shape == b.shape
            and kernels.compiling(a)
        )
        if not plain:
            return outer(inner(a) + b)
        b = kernels.same_layout(b, a)
        a = a if kernels.packed(a) else a.contiguous()
        if inner.follows():
            inner.follow(kernels.widest(a.detach(), inner.grid))
        s_a = inner.step()
        if outer.follows():
            with torch.no_grad():
                widest = _kernels(inner.grid, outer.grid)[2]
                outer.follow(widest(kernels.flat(a), kernels.flat(b), s_a))
        y: Tensor = _QuantizedAdd.apply(a, b, s_a, outer.step(), inner.grid, outer.grid)
        return y


# What each fused graph was made of; what is watched or cut is looked up there.
_WHOLE: WeakKeyDictionary[fx.Graph, fx.Graph] = WeakKeyDictionary()


@contextmanager
def fused_adds(network: fx.GraphModule) -> Iterator[None]:
    """Inside the block every add that stands alone between two quantizers is one `QuantizedAdd`."""
    original = network.graph
    fused = copy.deepcopy(original)
    network.add_module(PREFIX, nn.Module())
    fuse(network, fused)
    _WHOLE[fused] = original
    network.graph = fused
    try:
        yield
    finally:
        network.graph = original
        delattr(network, PREFIX)


def whole(network: fx.GraphModule) -> fx.Graph:
    """The network's graph, and inside `fused_adds` what that was made of: every value is a node."""
    return _WHOLE.get(network.graph, network.graph)


def is_fused(network: fx.GraphModule) -> bool:
    """Whether the network is inside `fused_adds`."""
    return network.graph in _WHOLE


def fuse(network: fx.GraphModule, graph: fx.Graph) -> None:
    """Fuse the adds of a graph over the network's modules, in place; inside `fused_adds` only.

    An add is left alone where the value of its inner quantizer has another reader.
    """
    holder = network.get_submodule(PREFIX)
    for node in list(graph.nodes):
        found = _quantized_add(network, node)
        if found is None:
            continue
        inner, outer, a, b = found
        before, after = quantizer_of(network, inner), quantizer_of(network, outer)
        assert before is not None
        assert after is not None
        name = str(inner.target).replace(".", "_")
        holder.add_module(name, QuantizedAdd(before, after))
        with graph.inserting_after(outer):
            new = graph.call_module(f"{PREFIX}.{name}", (a, b))
        outer.replace_all_uses_with(new)
        for gone in (outer, node, inner):
            graph.erase_node(gone)


def _quantized_add(
    network: fx.GraphModule, node: fx.Node
) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node] | None:
    """Inner quantizer, outer quantizer, and what both summands are made of, if ``node`` is such an add."""
    if not graph.is_add(network, node) or len(node.users) != 1:
        return None
    outer = next(iter(node.users))
    if quantizer_of(network, outer) is None:
        return None
    for inner, other in (node.all_input_nodes, node.all_input_nodes[::-1]):
        quantizer = quantizer_of(network, inner)
        unshared = len(inner.users) == 1 and other is not inner
        if quantizer is not None and unshared and not _hooked(network, inner, outer):
            return inner, outer, inner.all_input_nodes[0], other
    return None


def _hooked(network: fx.GraphModule, *nodes: fx.Node) -> bool:
    """Whether somebody watches what one of these modules returns."""
    return any(network.get_submodule(str(node.target))._forward_hooks for node in nodes)
