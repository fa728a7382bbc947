"""ADMM under a budget, as the dean sees it: the sparsifier whose layers have strengths.

The dean gives every layer (a group of channels that are cut together) a strength beta_l. 1 is the recipe's:
with all strengths at 1 the first Z-step leaves the widths that the recipe's structure decides. A layer
with twice the strength is pruned as if its channels had half the norm.

    a channel's score   |V_g| / (sqrt|g| b_l beta_l),   b_l the score at which layer l has the decided width
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolchain.dean.admm import Admm, ChannelGroup, soft_threshold
from toolchain.dean.budget import Budget, Kept
from toolchain.dean.gradients import moved
from toolchain.dean.hypergradients import keeping_size, size_hypergradient, sparsity_hypergradient
from toolchain.distillation.controllers.sparsifier import LayerState

# The multiplier's logarithm moves at each Z-step by this times the excess, a share of the whole network.
MULTIPLIER_GAIN = 0.5


class AdmmSparsifier:
    """ADMM on channel groups whose Z-step meets a budget.

    Args:
        groups: What may be cut, with its latent tensors.
        budget: The goals.
        widths: What the recipe's structure decides for each group; a group not named is left whole.
        rho: Weight of the penalty.
        dual_step: Of ADMM's dual update, in (0, 1].
        step: ``projection`` meets the goals at every Z-step; its hypergradients are a surrogate (see
            ``toolchain.dean.hypergradients``). ``multiplier`` thresholds softly, with a price that rises
            while the network is larger than its goals and falls while it is smaller.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        budget: Budget,
        widths: Mapping[str, int],
        *,
        rho: float,
        dual_step: float = 1.0,
        step: Literal["projection", "multiplier"] = "projection",
    ) -> None:
        self.admm, self.budget = Admm(groups, rho, dual_step=dual_step), budget
        self._groups = {group.name: group for group in groups}
        self._step = step
        self._strengths = dict.fromkeys(self._groups, 1.0)
        self._price: float | None = None
        self._kept: Kept | None = None
        self._fixed = False
        self._base = {
            name: _boundary(group, self.admm, widths.get(name, group.channels))
            for name, group in self._groups.items()
        }
        self._cost = {name: budget.cost_per_channel(name) for name in self._groups}

    @property
    def layers(self) -> tuple[str, ...]:
        """The groups; none once the masks are fixed, or where their widths were decided before."""
        decided = self._fixed or self.budget.widths is not None
        return () if decided else tuple(self._groups)

    @property
    def strengths(self) -> Mapping[str, float]:
        """beta of each layer."""
        return {name: self._strengths[name] for name in self.layers}

    @property
    def kept(self) -> Kept | None:
        """What the last Z-step kept; None before the first."""
        return self._kept

    def parameters(self, layer: str) -> tuple[nn.Parameter, ...]:
        return self._groups[layer].parameters

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        self._strengths |= strengths

    def pull(self) -> Mapping[nn.Parameter, Tensor]:
        return {} if self._fixed else self.admm.penalty_gradients()

    def observe(self) -> dict[str, LayerState]:
        v = self.admm.v()
        found = {}
        for name, group in self._groups.items():
            norms_C = group.norms(v) / group.size**0.5
            stays = group.channels if self._kept is None else self._kept.widths[name]
            mean, low = torch.stack([norms_C.mean(), norms_C.quantile(0.1)]).tolist()
            found[name] = LayerState(mean, low, 1 - stays / group.channels)
        return found

    def sparse(self) -> AbstractContextManager[None]:
        factors, _ = self._present()
        z = self.admm.thresholded(factors)
        return moved(self.admm.parameters, [z[p] for p in self.admm.parameters])

    def hypergradients(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, float]:
        factors, kept = self._present()
        v = self.admm.v()
        losses, sizes = [], []
        for name, group in self._groups.items():
            price = max(kept.price, 0.0) * self._base[name]
            norms_C, active_C = group.norms(v).cpu(), factors[name] > 0
            if self._step == "multiplier":  # what a layer must keep is not thresholded
                active_C &= factors[name] < 1
            dots_C = group.dots(gradients, v).cpu()
            losses.append(sparsity_hypergradient(dots_C, norms_C, active_C, group.size, price))
            cost_C = torch.full_like(norms_C, self._cost[name])
            sizes.append(size_hypergradient(cost_C, norms_C, active_C, group.size, price))
        found_L = keeping_size(torch.stack(losses), torch.stack(sizes))
        return dict(zip(self._groups, found_L.tolist(), strict=True))

    def z_step(self) -> Kept:
        """One Z-step with the dual update; returns the channels whose Z is not zero.

        Raises:
            StructureError: The goals are out of reach.
        """
        scores = self._scores()
        factors, kept = self._factors(scores)
        self.admm.step(factors)
        if self._step == "multiplier":
            widths = self.budget.priced(scores, kept.price).widths
            excess = max(self.budget.excess(goal, widths) for goal in self.budget.goal)
            self._price = kept.price * math.exp(MULTIPLIER_GAIN * excess)
        self._kept = kept
        return kept

    def fix(self) -> tuple[Kept, bool]:
        """End the pruning; returns what is kept for good, and whether the Z-steps had met the goals.

        Raises:
            StructureError: The goals are out of reach.
        """
        scores = self._scores()
        _, kept = self._factors(scores)
        met = True
        if (
            self._step == "multiplier"
        ):  # what it cut beyond the goals, or did not yet cut, is settled
            met = not self.budget.unmet(self.budget.priced(scores, kept.price).widths)
            kept = self.budget.project(scores)
        self._kept = kept
        self._fixed = True
        return self._kept, met

    def state_dict(self) -> dict[str, Any]:
        """ADMM's tensors, strengths, price, and what is kept."""
        kept = self._kept
        return {
            "admm": self.admm.state_dict(),
            "base": dict(self._base),
            "strengths": dict(self._strengths),
            "price": self._price,
            "kept": None if kept is None else (dict(kept.channels), kept.price),
            "fixed": self._fixed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.admm.load_state_dict(state["admm"])
        self._base = dict(state["base"])
        self._strengths, self._price = dict(state["strengths"]), state["price"]
        kept = state["kept"]
        self._kept = None if kept is None else Kept(*kept)
        self._fixed = state["fixed"]

    def _scores(self) -> dict[str, Tensor]:
        """Each channel's score, on the CPU."""
        v = self.admm.v()
        found = {}
        for name, group in self._groups.items():
            weight = self._base[name] * max(self._strengths[name], 1e-12)
            found[name] = (group.norms(v) / (group.size**0.5 * weight)).cpu()
        return found

    def _factors(self, scores: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Kept]:
        """What a Z-step multiplies each channel with, and the channels that it leaves."""
        if self._step == "projection":
            kept = self.budget.project(scores)
            return self._hard(kept), kept
        price = self._price
        if price is None:  # at first the weakest channel of all is at the threshold
            every = torch.cat(list(scores.values()))
            price = float(every[every > 0].min()) if bool((every > 0).any()) else 1.0
        factors = {name: self._soft(name, score_C, price) for name, score_C in scores.items()}
        channels: dict[str, tuple[int, ...]] = {
            name: tuple((factor_C > 0).nonzero()[:, 0].tolist())
            for name, factor_C in factors.items()
        }
        return factors, Kept(channels, price)

    def _present(self) -> tuple[dict[str, Tensor], Kept]:
        """As ``_factors``, at the last Z-step's price: what a budget keeps is not searched for again."""
        if self._step == "projection" and self._kept is not None:
            return self._hard(self._kept), self._kept
        return self._factors(self._scores())

    def _hard(self, kept: Kept) -> dict[str, Tensor]:
        """Ones for the channels that stay."""
        factors = {}
        for name, group in self._groups.items():
            factors[name] = torch.zeros(group.channels, dtype=torch.float64)
            factors[name][list(kept.channels[name])] = 1.0
        return factors

    def _soft(self, name: str, score_C: Tensor, price: float) -> Tensor:
        """Soft-threshold factors; a layer's best channels, as many as it must keep, are left alone.

        In units of scores the threshold p beta_l b_l sqrt|g| on |V_g| is p.
        """
        factor_C = soft_threshold(score_C, price)
        least = self.budget.options(name)[0]
        factor_C[torch.argsort(-score_C, stable=True)[:least]] = 1.0
        return factor_C


def _boundary(group: ChannelGroup, admm: Admm, width: int) -> float:
    """|V_g| / sqrt|g| between the channels that a width keeps and those that it does not; above zero."""
    norms_C = (group.norms(admm.v()) / group.size**0.5).sort(descending=True).values
    ranked = norms_C.clamp_min(1e-12).tolist()
    return (
        ranked[-1] * 0.999 if width >= len(ranked) else math.sqrt(ranked[width - 1] * ranked[width])
    )
