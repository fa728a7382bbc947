"""Which channels a budget keeps, when layers have strengths: one price for all, found by bisection.

    a channel stays  iff  |V_g| / (sqrt|g| beta_l) > p

with the lowest price p at which the widths, rounded up to those that a group may have, meet every goal.
What rounding leaves of the budget goes back to the channels that missed it by least. That is ADMM's
projection onto {Z : size(Z) <= goal}, where the distance is measured in the layers' own units; Liu et al.
2022 leave the budget open (**reconstruction**). Axes: C channels of a group.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolchain.structure.cost import CostModel
from toolchain.structure.plan import Branch
from toolchain.structure.space import out_of_reach, widths_allowed

# Goals that never rise when a channel goes; measured time may, so it is looked at step by step.
_MONOTONE = ("macs", "parameters", "sparsity")


@dataclass(frozen=True)
class Kept:
    """What a budget keeps.

    Attributes:
        channels: Positions of the channels that stay, ascending, of each group.
        price: The score at or below which channels go, before rounding.
    """

    channels: Mapping[str, tuple[int, ...]]
    price: float

    @property
    def widths(self) -> dict[str, int]:
        return {name: len(channels) for name, channels in self.channels.items()}


@dataclass(frozen=True)
class Budget:
    """The goals of a network, and what may be done to reach them.

    Attributes:
        cost: Of any choice of widths.
        goal: Shares that may stay, by ``macs``, ``parameters`` or ``latency``; or ``sparsity``, the share
            of channels that goes.
        channels: How many each group has, of those that can be cut.
        removed: Branches that go in any case.
        align: Widths kept are multiples of this.
        max_sparsity: Of each group.
        widths: Channels kept of each group, if that is decided already; then there is no price.
    """

    cost: CostModel
    goal: Mapping[str, float]
    channels: Mapping[str, int]
    removed: Sequence[Branch] = ()
    align: int = 1
    max_sparsity: float = 0.9
    widths: Mapping[str, int] | None = None

    def left(self, goal: str, widths: Mapping[str, int]) -> float:
        """The share that stays of what a goal counts; for ``sparsity``, of the channels."""
        if goal == "sparsity":
            return sum(widths.values()) / max(1, sum(self.channels.values()))
        return self.cost.share(goal, widths, self.removed)  # type: ignore[arg-type]

    def unmet(self, widths: Mapping[str, int]) -> list[str]:
        """The goals that these widths do not meet."""
        return [name for name in self.goal if self.excess(name, widths) > 1e-12]

    def excess(self, goal: str, widths: Mapping[str, int]) -> float:
        """How much more than the goal these widths leave, as a share of the whole."""
        asked = self.goal[goal]
        return self.left(goal, widths) - (1 - asked if goal == "sparsity" else asked)

    def cost_per_channel(self, group: str) -> float:
        """The share of the network's MACs that one channel of a whole group stands for."""
        full = dict(self.channels)
        less = {**full, group: full[group] - 1}
        return self.cost.share("macs", full, ()) - self.cost.share("macs", less, ())

    def options(self, group: str) -> tuple[int, ...]:
        """The widths, ascending, that a group may have."""
        return widths_allowed(self.channels[group], self.align, self.max_sparsity)

    def priced(self, scores: Mapping[str, Tensor], price: float) -> Kept:
        """Channels whose score is above the price, and the best of the others up to a width allowed."""
        widths = {}
        for name, score_C in scores.items():
            options = self.options(name)
            above = int((score_C > price).sum())
            widths[name] = options[bisect_left(options, max(1, above))]
        return Kept(_best(scores, widths), price)

    def project(self, scores: Mapping[str, Tensor]) -> Kept:
        """The channels that the goals leave.

        Args:
            scores: |V_g| / (sqrt|g| beta_l) of each channel, [C], by group.

        Raises:
            StructureError: A goal is out of reach.
        """
        if self.widths is not None:
            return Kept(_best(scores, self.widths), 0.0)
        levels = [
            -1.0,
            *sorted({value for score_C in scores.values() for value in score_C.tolist()}),
        ]

        def met(level: float, goals: Sequence[str]) -> bool:
            missed = self.unmet(self.priced(scores, level).widths)
            return not any(name in goals for name in missed)

        monotone = [name for name in self.goal if name in _MONOTONE]
        first = bisect_left(levels, True, key=lambda level: met(level, monotone))
        for level in levels[first:]:
            kept = self.priced(scores, level)
            if not self.unmet(kept.widths):
                return self._given_back(scores, kept)
        smallest = self.priced(scores, levels[-1]).widths
        worst = max(self.goal, key=lambda name: self.excess(name, smallest))
        raise out_of_reach(dict(self.goal), worst, self.left(worst, smallest))

    def _given_back(self, scores: Mapping[str, Tensor], kept: Kept) -> Kept:
        """Use what rounding left: widen, again and again, the group whose next channel scores best."""
        widths, closed = kept.widths, set[str]()
        ranked = {
            name: score_C.sort(descending=True).values.tolist() for name, score_C in scores.items()
        }
        while True:
            wider = {
                name: options[bisect_right(options, widths[name])]
                for name in set(scores) - closed
                if widths[name] < (options := self.options(name))[-1]
            }
            if not wider:
                return Kept(_best(scores, widths), kept.price)
            name = max(sorted(wider), key=lambda n: ranked[n][widths[n]])
            attempt = {**widths, name: wider[name]}
            if self.unmet(attempt):
                closed.add(name)
            else:
                widths = attempt


def _best(scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The channels of these widths with the highest scores; of equal ones the first."""
    best = {}
    for name, score_C in scores.items():
        order_C = torch.argsort(-score_C, stable=True)[: widths[name]]
        best[name] = tuple(sorted(order_C.tolist()))
    return best
