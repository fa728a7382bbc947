"""How the sparsity is spread: which channels of each group stay and which branches go.

    local    the same sparsity in every group
    global   one threshold over scores that were divided by their group's mean
    macs     the step that loses the least importance per multiply-accumulate saved, again and again
    latency  the same per microsecond saved, by a table of measured times

``space`` says how importance that is lost is counted, ``greedy`` how steps are taken.
"""

from __future__ import annotations

import fnmatch
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor

from deploy.errors import ConfigError
from toolchain.structure.cost import CostModel
from toolchain.structure.greedy import greedy
from toolchain.structure.plan import Branch, Group
from toolchain.structure.space import Allocation, Space, out_of_reach

__all__ = ["Allocation", "Kind", "allocate", "smallest"]

Kind = Literal["local", "global", "macs", "latency"]
_GOALS = ("macs", "parameters", "latency", "sparsity")


def allocate(
    groups: Sequence[Group],
    branches: Sequence[Branch],
    scores: Mapping[str, Tensor],
    cost_model: CostModel,
    *,
    kind: Kind,
    goal: Mapping[str, float],
    align: int = 1,
    max_sparsity: float = 0.9,
    depth: bool = False,
    channels: Mapping[str, int] | None = None,
    drop: Sequence[str] = (),
    contributions: Mapping[str, float] | None = None,
) -> Allocation:
    """What stays of each group, so that every goal holds.

    Args:
        scores: Importance per channel, by group name; groups that cannot be cut need none.
        goal: Shares that may stay, by ``macs``, ``parameters`` or ``latency``; or ``sparsity``, the
            share of all channels that can be cut to remove (for ``local``: of each group, to the
            nearest width it may have).
        align: Widths kept are multiples of this, in groups that have more channels than that.
        max_sparsity: Of each group, and of the branches together.
        depth: Whether branches may go.
        channels: Group name or glob to channels kept; with this or ``drop``, nothing else is decided.
        drop: Names or globs of branches that go.
        contributions: By branch name, see ``branch_contributions``; a branch not named has 1.

    Raises:
        ConfigError: The settings contradict each other, or a name matches nothing.
        StructureError: A goal is out of reach; the message has the smallest value reachable.
    """
    space = Space(
        groups, branches if depth else (), scores, cost_model, align, max_sparsity, contributions
    )
    if channels or drop:
        return _explicit(space, channels or {}, drop, branches)
    _check(goal, kind, depth, cost_model)
    if kind == "local":
        if goal.get("sparsity", 0.0) > max_sparsity:
            raise out_of_reach(goal, "sparsity", 1 - max_sparsity)
        others = {name: value for name, value in goal.items() if name != "sparsity"}
        return _first(space, others, _local_levels(space, goal.get("sparsity")))
    if kind == "global":
        return _first(space, goal, _global_levels(space))
    return greedy(space, goal, "latency" if kind == "latency" else "macs")


def smallest(
    groups: Sequence[Group],
    branches: Sequence[Branch],
    scores: Mapping[str, Tensor],
    cost_model: CostModel,
    *,
    align: int = 1,
    max_sparsity: float = 0.9,
    depth: bool = False,
) -> Allocation:
    """The smallest network that these settings allow."""
    space = Space(groups, branches if depth else (), scores, cost_model, align, max_sparsity)
    widths = {name: allowed[0] for name, allowed in space.options.items()}
    dearest = sorted(
        space.branches,
        key=lambda branch: cost_model.of(
            "macs", widths, (), [name for name in branch.modules if name in cost_model.cost.layers]
        ),
        reverse=True,
    )
    return space.result(widths, dearest[: space.most_removed])


def _check(goal: Mapping[str, float], kind: Kind, depth: bool, cost_model: CostModel) -> None:
    for name, value in goal.items():
        if name not in _GOALS:
            raise ConfigError(
                f"structure: goal {name!r} given; accepted are {list(_GOALS)}; use one of them"
            )
        if not 0 <= value <= 1:
            raise ConfigError(
                f"structure.{name}: {value} given; accepted is a share in [0, 1]; use e.g. 0.5"
            )
    if not goal:
        raise ConfigError(
            "structure: nothing says how small the network has to be; accepted are macs, parameters "
            "or latency under goals, or channels under structure; set one of them"
        )
    if depth and kind in ("local", "global"):
        raise ConfigError(
            f"structure.branches: true given with allocation {kind!r}; accepted with 'macs' and "
            "'latency'; set structure.allocation, or name the branches under structure.drop"
        )
    if cost_model.latency is None and (kind == "latency" or "latency" in goal):
        raise ConfigError(
            "structure: latency asked for without measured times; accepted is a cost model with a "
            "table of them; measure one, or use allocation 'macs'"
        )


def _local_levels(space: Space, sparsity: float | None) -> Iterator[dict[str, int]]:
    """Widths at rising sparsity, from nothing cut to all that may be; or at this sparsity only."""
    steps = {
        1 - width / group.channels
        for name, group in space.groups.items()
        for width in space.options[name]
    } | {0.0}
    for step in sorted(steps) if sparsity is None else [sparsity]:
        widths = {}
        for name, group in space.groups.items():
            wanted = group.channels * (1 - step)
            distances = [(abs(width - wanted), width) for width in space.options[name]]
            widths[name] = min(distances)[1]
        yield widths


def _global_levels(space: Space) -> Iterator[dict[str, int]]:
    """Widths at a rising threshold over the normalised scores."""
    ascending = {}
    for name, score_C in space.scores.items():
        mean = float(score_C.mean())
        normal_C = score_C / mean if mean > 0 else score_C * 0 + 1
        ascending[name] = sorted(normal_C.tolist())
    last = None
    for threshold in [
        *sorted({score for scores in ascending.values() for score in scores}),
        math.inf,
    ]:
        widths = {}
        for name, scores in ascending.items():
            above = len(scores) - bisect_left(scores, threshold)
            allowed = space.options[name]
            widths[name] = allowed[bisect_left(allowed, above)]
        if widths != last:
            yield widths
        last = widths


def _first(space: Space, goal: Mapping[str, float], levels: Iterable[dict[str, int]]) -> Allocation:
    """The first level at which every goal holds.

    Levels are not bisected, because measured time does not fall with every channel.
    """
    best: dict[str, float] = {}
    for widths in levels:
        missed = space.unmet(goal, widths)
        if not missed:
            return space.result(widths, ())
        for name in missed:
            best[name] = min(best.get(name, math.inf), space.left(name, widths, ()))
    name = max(best, key=lambda name: best[name])
    raise out_of_reach(goal, name, best[name])


def _explicit(
    space: Space, channels: Mapping[str, int], drop: Sequence[str], branches: Sequence[Branch]
) -> Allocation:
    """The widths and branches that the recipe names; scores choose the channels."""
    widths = space.full()
    for pattern, count in channels.items():
        matches = [name for name in space.groups if _matches(name, pattern)]
        if not matches:
            raise ConfigError(
                f"structure.channels: {pattern!r} matches no group that can be cut; accepted are "
                f"{list(space.groups)} and globs of them; `compress-deploy plan` lists them"
            )
        for name in matches:
            full = space.groups[name].channels
            if not 1 <= count <= full:
                raise ConfigError(
                    f"structure.channels: {count} given for {name!r}; accepted is 1 to {full}; "
                    "use structure.drop to remove a whole branch"
                )
            widths[name] = count
    removed: dict[str, Branch] = {}
    for pattern in drop:
        found = [branch for branch in branches if _matches(branch.name, pattern)]
        possible = [branch for branch in found if branch.reason is None]
        if not possible:
            why = f" ({found[0].reason})" if found else ""
            raise ConfigError(
                f"structure.drop: {pattern!r} matches no branch that can be removed{why}; accepted "
                f"are {[branch.name for branch in branches if branch.reason is None]} and globs; "
                "`compress-deploy plan` lists them"
            )
        removed.update({branch.name: branch for branch in possible})
    return space.result(widths, list(removed.values()))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
