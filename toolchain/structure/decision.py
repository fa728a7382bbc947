"""From a network and a recipe to what is cut: groups, scores and costs found, then allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, fx

from deploy.errors import ConfigError
from toolchain.structure.allocation import Allocation, allocate, smallest
from toolchain.structure.branches import branch_contributions, find_branches
from toolchain.structure.cost import Cost, CostModel, measure
from toolchain.structure.groups import find_groups
from toolchain.structure.importance import importance, taylor_gradients
from toolchain.structure.latency_table import LatencyTable
from toolchain.structure.plan import Branch, Group

if TYPE_CHECKING:
    from toolchain.recipe.schema import Goals, Recipe, StructureConfig

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Findings:
    """Everything that an allocation is made from.

    Attributes:
        groups: All groups, also those that cannot be cut.
        branches: All residual branches, also those that cannot be removed.
        scores: Importance per channel of each group that can be cut.
        cost_model: What any choice costs.
        contributions: Of each branch to its residual sum; empty where it was not measured.
    """

    groups: list[Group]
    branches: list[Branch]
    scores: dict[str, Tensor]
    cost_model: CostModel
    contributions: dict[str, float]

    def allocate(self, structure: StructureConfig, goal: dict[str, float]) -> Allocation:
        """What stays, by the recipe's structure and this goal."""
        return allocate(
            self.groups,
            self.branches,
            self.scores,
            self.cost_model,
            kind=structure.allocation,
            goal=goal,
            align=structure.align,
            max_sparsity=structure.max_sparsity,
            depth=structure.branches,
            channels=structure.channels,
            drop=structure.drop,
            contributions=self.contributions,
        )

    def smallest(self, structure: StructureConfig) -> Allocation:
        """The smallest network that the recipe's structure allows."""
        return smallest(
            self.groups,
            self.branches,
            self.scores,
            self.cost_model,
            align=structure.align,
            max_sparsity=structure.max_sparsity,
            depth=structure.branches,
        )


@dataclass(frozen=True)
class Decision:
    """What was found in a network, and what of it stays.

    Attributes:
        findings: Groups, branches, scores and costs.
        allocation: What stays.
        goal: The shares of this network that may stay, which the allocation meets.
    """

    findings: Findings
    allocation: Allocation
    goal: Mapping[str, float] = field(default_factory=dict)

    @property
    def groups(self) -> list[Group]:
        return self.findings.groups

    @property
    def branches(self) -> list[Branch]:
        return self.findings.branches


def decide(
    network: fx.GraphModule,
    input_shape: Sequence[int],
    recipe: Recipe,
    *,
    sparsity: float | None = None,
    whole: fx.GraphModule | None = None,
    batches: Batches,
    cache: Path,
    say: Say = lambda text: None,
) -> Decision:
    """What of ``network`` stays, by the recipe's structure and goals.

    Args:
        network: Plain, without views.
        sparsity: Share of channels to remove, in place of the recipe's goals.
        whole: The network that the goals' shares refer to, where ``network`` is another one: cut
            out of it before, or of another kind; default ``network``.
        batches: Gives normalised images and labels, for gradients and contributions.
        cache: Folder below which measured times are kept.
        say: Told how far a long measurement is.

    Raises:
        StructureError: A goal is out of reach.
        ConfigError: The recipe's structure contradicts itself or the network.
    """
    findings = examine(network, input_shape, recipe, batches=batches, cache=cache, say=say)
    goal = goal_of(recipe.structure, recipe.goals) if sparsity is None else {"sparsity": sparsity}
    if whole is not None:
        goal = of_what_is_left(goal, measure(whole, input_shape), findings.cost_model.cost)
    return Decision(findings, findings.allocate(recipe.structure, goal), goal)


def examine(
    network: fx.GraphModule,
    input_shape: Sequence[int],
    recipe: Recipe,
    *,
    batches: Batches,
    cache: Path,
    say: Say = lambda text: None,
) -> Findings:
    """Find groups and branches, score the channels and measure what the recipe's goals need."""
    structure = recipe.structure
    groups = find_groups(network, input_shape, structure.ignore)
    branches = find_branches(network, input_shape)
    cost = measure(network, input_shape)
    cuttable = [group for group in groups if group.reason is None]
    gradients = None
    if structure.importance == "taylor":
        gradients = taylor_gradients(network, batches())
    scores = {
        group.name: importance(group, network, structure.importance, gradients)
        for group in cuttable
    }
    contributions: dict[str, float] = {}
    if structure.branches and branches:
        images = [images_BCHW for images_BCHW, _ in batches()]
        contributions = branch_contributions(network, branches, images)
    table = None
    if structure.allocation == "latency" or structure.latency is not None:
        table = LatencyTable(cache / "latency", step=max(structure.align, 8), progress=_told(say))
        table.prepare(cost, cuttable)
    return Findings(
        groups, branches, scores, CostModel(cost, groups, branches, table), contributions
    )


def goal_of(structure: StructureConfig, goals: Goals) -> dict[str, float]:
    """The shares of the network that may stay.

    The latency goal is the allocation's only where it goes by measured times or is told so; elsewhere
    it is checked at the end, on the exported student.
    """
    latency = structure.latency
    if latency is None and structure.allocation == "latency":
        latency = goals.latency
    asked = {
        "macs": structure.macs if structure.macs is not None else goals.macs,
        "parameters": goals.parameters,
        "latency": latency,
    }
    return {name: share for name, share in asked.items() if share is not None}


def of_what_is_left(goal: dict[str, float], whole: Cost, left: Cost) -> dict[str, float]:
    """Shares of the whole network, as shares of what earlier cuts left of it.

    Raises:
        ConfigError: A latency goal: no table holds the times of layers that are gone.
    """
    if "latency" in goal:
        raise ConfigError(
            "structure: a latency goal for a network that is not the whole teacher any more; accepted "
            "there are macs, parameters or a stage's sparsity; set structure.macs"
        )
    factors = {
        "macs": whole.macs / left.macs,
        "parameters": whole.parameters / left.parameters,
        "sparsity": 1.0,
    }
    return {name: min(1.0, share * factors[name]) for name, share in goal.items()}


def _told(say: Say) -> Callable[[int, int], None]:
    """Says how far the measurement of times is, at every quarter."""
    quarters = {0}

    def progress(done: int, total: int) -> None:
        quarter = 4 * done // max(1, total)
        if quarter not in quarters:
            quarters.add(quarter)
            say(f"latency table: {done} of {total} layer shapes measured")

    return progress
