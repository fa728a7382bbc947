"""Masks on an attached network: channels and branches hidden from the student, updates held still.

    step(W) = M . step(W) + (1 - M) . W      while the student learns, and the reverse for the teacher

An optimizer moves weights that have no gradient too (momentum, weight decay), so what must stay is put
back after its step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attached import VectorView, ViewedPadShortcut
from toolchain.quantization.weights import WeightView
from toolchain.structure.plan import Branch, Group

Side = Literal["important", "unimportant"]


def views_of(module: nn.Module) -> Iterator[WeightView | VectorView | ViewedPadShortcut]:
    """What holds masks for a module: the views of its tensors, or the module itself."""
    if isinstance(module, ViewedPadShortcut):
        yield module
    if parametrize.is_parametrized(module):
        for chain in module.parametrizations.values():  # type: ignore[operator]
            if isinstance(chain[0], WeightView | VectorView):
                yield chain[0]


@torch.no_grad()
def mask_channels(
    network: fx.GraphModule,
    groups: Iterable[Group],
    kept: Mapping[str, Sequence[int]],
    removed: Sequence[Branch] = (),
    bypassed: Collection[str] = (),
) -> None:
    """Hide every channel that is not kept, and every removed branch, from the student's view.

    All masks are set anew: what was hidden before and is kept now can be seen again. A group without
    an entry in ``kept`` stays whole.

    Args:
        bypassed: Paths of the activation quantizers that the network without the removed branches
            does not have (see `vanishing`).
    """
    for module in network.modules():
        for view in views_of(module):
            view.keep_O.fill_(True)
            if not isinstance(view, VectorView):
                view.keep_I.fill_(True)
    for name, module in network.named_modules():
        if isinstance(module, ActivationQuantizer):
            module.set_bypass(name in bypassed)
    for group in groups:
        dropped = sorted(
            set(range(group.channels)) - set(kept.get(group.name, range(group.channels)))
        )
        for part in group.slices:
            positions = [position for channel in dropped for position in part.index[channel]]
            for view in views_of(network.get_submodule(part.module)):
                if part.axis == "out":
                    view.keep_O[positions] = False
                elif isinstance(view, ViewedPadShortcut) or (
                    isinstance(view, WeightView) and view.has_inputs
                ):
                    view.keep_I[positions] = False
    for branch in removed:  # masked to its last batch norm, a branch adds exactly zero
        for name in branch.modules:
            for view in views_of(network.get_submodule(name)):
                view.keep_O.fill_(False)
    for module in network.modules():
        if isinstance(module, ViewedPadShortcut):
            module.refresh()


def vanishing(network: nn.Module, slim: nn.Module) -> frozenset[str]:
    """Paths of the activation quantizers of ``network`` that ``slim``, without some branches, lacks.

    Where a branch goes, its add goes, and with it a grid: the sum's, because the side that stays has
    its own; or that side's, because a ReLU that followed the sum now follows it directly.
    """

    def quantizers(of: nn.Module) -> set[str]:
        return {name for name, m in of.named_modules() if isinstance(m, ActivationQuantizer)}

    return frozenset(quantizers(network) - quantizers(slim))


def kept_channels(
    network: nn.Module, groups: Iterable[Group], removed: Sequence[Branch] = ()
) -> dict[str, tuple[int, ...]]:
    """The channels of each group that the masks let the student keep, for groups that lost some.

    Groups that lie inside the removed branches are left out: they go with them.
    """
    gone = {name for branch in removed for name in branch.modules}
    kept = {}
    for group in groups:
        makers = [p for p in group.slices if p.axis == "out" and p.module not in gone]
        seen = [(p, v) for p in makers for v in views_of(network.get_submodule(p.module))]
        if seen:
            part, view = seen[0]
            stays = tuple(
                c
                for c, positions in enumerate(part.index)
                if bool(view.keep_O[list(positions)].all())
            )
            if len(stays) < group.channels:
                kept[group.name] = stays
    return kept


def attach_element_masks(network: nn.Module) -> None:
    """Give every weight view a mask of single weights, where it has none yet."""
    for view, latent in _latents(network):
        if isinstance(view, WeightView) and view.keep_OX is None:
            view.keep_OX = torch.ones_like(latent, dtype=torch.bool)


def mask_weights(network: nn.Module, sparsity: float) -> None:
    """Hide the smallest single weights of all layers together, by |W| (one global threshold).

    Args:
        network: Views attached with ``elements=True``.
        sparsity: Fraction of all weights to hide, in [0, 1].
    """
    layers = [(view, latent) for view, latent in _latents(network) if isinstance(view, WeightView)]
    sizes_N = torch.cat([latent.detach().abs().flatten() for _, latent in layers])
    order_N = sizes_N.argsort(stable=True)
    keep_N = torch.ones_like(order_N, dtype=torch.bool)
    keep_N[order_N[: round(sparsity * len(order_N))]] = False
    start = 0
    for view, latent in layers:
        assert view.keep_OX is not None
        view.keep_OX.copy_(keep_N[start : start + latent.numel()].view_as(latent))
        start += latent.numel()


def hidden_share(network: nn.Module) -> float:
    """Fraction of all weights that the student's masks hide, in [0, 1]: its sparsity."""
    hidden = total = 0
    for view, latent in _latents(network):
        if isinstance(view, WeightView):
            kept = int(view._mask_like(latent).expand_as(latent).sum())
            hidden, total = hidden + latent.numel() - kept, total + latent.numel()
    return hidden / total if total else 0.0


def _latents(network: nn.Module) -> Iterator[tuple[WeightView | VectorView, nn.Parameter]]:
    for module in network.modules():
        if parametrize.is_parametrized(module):
            for chain in module.parametrizations.values():  # type: ignore[operator]
                if isinstance(chain[0], WeightView | VectorView):
                    yield chain[0], chain.original


@torch.no_grad()
def bake(network: nn.Module) -> None:
    """Set every hidden latent weight to zero, so that the masks change nothing any more."""
    for view, latent in _latents(network):
        mask = view._mask_like(latent) if isinstance(view, WeightView) else view.mask()
        latent.mul_(mask)


class HeldStill:
    """Puts back, after an optimizer's step, the latent weights of the side that is not learning.

    A batch norm's factor and shift belong to the student alone: the teacher has its own.
    """

    def __init__(self, network: nn.Module) -> None:
        self._pairs = list(_latents(network))

    @contextmanager
    def only(self, side: Side) -> Iterator[None]:
        """Let nothing but this side's weights move inside the block."""
        before = [latent.detach().clone() for _, latent in self._pairs]
        yield
        with torch.no_grad():
            for (view, latent), was in zip(self._pairs, before, strict=True):
                mask: Tensor = (
                    view._mask_like(latent) if isinstance(view, WeightView) else view.mask()
                )
                latent.copy_(torch.where(mask if side == "important" else ~mask, latent, was))
