"""What can be chosen: the widths that each group may have, the branches that may go, and what that costs.

Loss of importance is counted per weighted layer, as the share of the layer's own importance that goes:
cutting channels R of a group loses ``layers * sum(s_R) / sum(s)``, where ``layers`` is how many weighted
layers make the group's channels, and removing a branch loses what is left of every layer in it. Both are
multiplied by the branch's contribution to its residual sum, where that was measured. So a branch and a
few channels compete in one currency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from deploy.errors import StructureError
from toolchain.structure.cost import CostModel, Measure
from toolchain.structure.plan import Branch, Group


@dataclass(frozen=True)
class Allocation:
    """What stays.

    Attributes:
        kept: Positions of the channels that stay, ascending, by group name; only groups that can be
            cut and are not inside a removed branch.
        removed: Branches that go.
    """

    kept: Mapping[str, tuple[int, ...]]
    removed: tuple[Branch, ...] = ()

    @property
    def widths(self) -> dict[str, int]:
        return {name: len(channels) for name, channels in self.kept.items()}


def widths_allowed(channels: int, align: int, max_sparsity: float) -> tuple[int, ...]:
    """The widths, ascending, that a group of so many channels may have.

    >>> widths_allowed(32, 16, 0.9), widths_allowed(20, 8, 0.5), widths_allowed(8, 16, 0.9)
    ((16, 32), (16, 20), (8,))
    """
    least = max(1, math.ceil(channels * (1 - max_sparsity) - 1e-9))
    widths = [width for width in range(align, channels, align) if width >= least]
    return (*widths, channels)


class Space:
    """The choices for one network.

    Attributes:
        groups: Groups that can be cut, by name.
        branches: Branches that may go.
        most_removed: How many of them may go together, by the largest sparsity.
        options: Widths that each group may have, ascending; the last is its whole width.
        order: Channels of each group, most important first.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        branches: Sequence[Branch],
        scores: Mapping[str, Tensor],
        cost: CostModel,
        align: int = 1,
        max_sparsity: float = 0.9,
        contributions: Mapping[str, float] | None = None,
    ) -> None:
        self.groups = {group.name: group for group in groups if group.reason is None}
        self.branches = tuple(branch for branch in branches if branch.reason is None)
        self.cost = cost
        self.scores = {name: scores[name].detach().double().cpu() for name in self.groups}
        self.options = {
            name: widths_allowed(group.channels, align, max_sparsity)
            for name, group in self.groups.items()
        }
        # Ties go to the channel that comes first, so that the same scores give the same channels.
        self.order = {
            name: (-score_C).argsort(stable=True).tolist() for name, score_C in self.scores.items()
        }
        self._lost = {name: self._lost_shares(name) for name in self.groups}
        self._made_by = {
            part.module: name
            for name, group in self.groups.items()
            for part in group.slices
            if part.axis == "out"
        }
        contributions = contributions or {}
        self.most_removed = int(max_sparsity * len(self.branches) + 1e-9)
        self._contribution = {
            branch.name: contributions.get(branch.name, 1.0) for branch in self.branches
        }
        self._weight = {name: self._weight_of(group) for name, group in self.groups.items()}

    def full(self) -> dict[str, int]:
        """Every group at its whole width."""
        return {name: group.channels for name, group in self.groups.items()}

    def result(self, widths: Mapping[str, int], removed: Sequence[Branch]) -> Allocation:
        """The allocation with these widths, best channels first."""
        gone = {name for branch in removed for name in branch.modules}
        kept = {
            name: tuple(sorted(self.order[name][: widths[name]]))
            for name, group in self.groups.items()
            if not all(part.module in gone for part in group.slices)
        }
        return Allocation(kept, tuple(removed))

    def left(self, goal: str, widths: Mapping[str, int], removed: Sequence[Branch]) -> float:
        """The share that stays of what ``goal`` counts; for ``sparsity``, of cuttable channels."""
        if goal == "sparsity":
            total = sum(group.channels for group in self.groups.values())
            kept = sum(self.result(widths, removed).widths.values())
            return kept / total if total else 1.0
        measure: Measure = goal  # type: ignore[assignment]
        return self.cost.share(measure, widths, removed)

    def unmet(
        self, goal: Mapping[str, float], widths: Mapping[str, int], removed: Sequence[Branch] = ()
    ) -> list[str]:
        """The goals that do not hold yet."""
        return [
            name
            for name, value in goal.items()
            if self.left(name, widths, removed)
            > (1 - value if name == "sparsity" else value) + 1e-12
        ]

    def loss(self, name: str, width: int) -> float:
        """Importance that a group of this width has lost."""
        return self._weight[name] * self._lost[name][width]

    def branch_loss(self, branch: Branch, widths: Mapping[str, int]) -> float:
        """Importance that removing a branch loses on top of what its layers have lost already."""
        left = 0.0
        for module in branch.modules:
            if self._is_weighted(module):
                maker = self._made_by.get(module)
                left += 1.0 - (self._lost[maker][widths[maker]] if maker is not None else 0.0)
        return self._contribution[branch.name] * left

    def _lost_shares(self, name: str) -> list[float]:
        """At each width, the share of the group's importance that is gone."""
        ranked_C = self.scores[name][self.order[name]]
        total = float(ranked_C.sum())
        shares_C = ranked_C / total if total > 0 else ranked_C * 0 + 1 / len(ranked_C)
        return [1.0, *(1 - shares_C.cumsum(0)).clamp(min=0).tolist()]

    def _is_weighted(self, module: str) -> bool:
        layer = self.cost.cost.layers.get(module)
        return layer is not None and layer.kind not in ("norm", "other")

    def _weight_of(self, group: Group) -> float:
        """Weighted layers that make the channels, each by the contribution of its branch."""
        modules = {part.module for part in group.slices}
        inside = [
            self._contribution[branch.name]
            for branch in self.branches
            if modules <= set(branch.modules)
        ]
        layers = sum(part.axis == "out" and self._is_weighted(part.module) for part in group.slices)
        return max(1, layers) * min(inside, default=1.0)


def out_of_reach(goal: Mapping[str, float], name: str, left: float) -> StructureError:
    """The error for a goal that no choice reaches; ``left`` is the smallest share that was."""
    if name == "sparsity":
        return StructureError(
            f"structure: sparsity {goal[name]:g} is out of reach; the largest reachable is "
            f"{1 - left:.4f}; ask for less, or allow more with max_sparsity, align or ignore"
        )
    return StructureError(
        f"structure: {name} {goal[name]:g} is out of reach; the smallest reachable is {left:.4f}; ask "
        "for no less, or allow more with max_sparsity, align, branches or ignore"
    )
