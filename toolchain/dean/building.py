"""From what was decided about a network's structure to the sparsifier that ADMM and the dean share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from deploy.errors import ConfigError
from toolchain.dean.admm import ChannelGroup
from toolchain.dean.budget import Budget
from toolchain.dean.sparsifier import AdmmSparsifier
from toolchain.structure.decision import Decision

if TYPE_CHECKING:
    from toolchain.recipe.schema import StructureConfig


def build_sparsifier(
    network: nn.Module,
    decision: Decision,
    structure: StructureConfig,
    *,
    rho: float,
    dual_step: float,
    budget: Literal["projection", "multiplier", "widths"],
) -> AdmmSparsifier:
    """ADMM on every group that may be cut and does not lie in a branch that goes.

    Args:
        network: Views attached, on its device.
        decision: Groups, costs, goals, and the branches that go.
        structure: Alignment and largest sparsity.
        rho: Weight of ADMM's penalty.
        dual_step: Of its dual update, in (0, 1].
        budget: How the goals are met.

    Raises:
        ConfigError: The recipe names the widths, which leaves nothing for a price to decide.
    """
    allocation = decision.allocation
    if budget != "widths" and not decision.goal:
        raise ConfigError(
            f"ddsl-prune.budget: {budget!r} without a goal, because structure.channels or drop name what "
            "stays; accepted there is 'widths'; set it, or set goals.macs in place of the widths"
        )
    gone = {name for branch in allocation.removed for name in branch.modules}
    groups = [
        group
        for group in decision.groups
        if group.reason is None
        and not all(part.module in gone for part in group.slices if part.axis == "out")
    ]
    whole = {group.name: group.channels for group in groups}
    return AdmmSparsifier(
        [ChannelGroup(group, network) for group in groups],
        Budget(
            decision.findings.cost_model,
            decision.goal,
            whole,
            allocation.removed,
            structure.align,
            structure.max_sparsity,
            {**whole, **allocation.widths} if budget == "widths" else None,
        ),
        allocation.widths,
        rho=rho,
        dual_step=dual_step,
        step="multiplier" if budget == "multiplier" else "projection",
    )
