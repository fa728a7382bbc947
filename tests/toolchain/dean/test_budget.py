"""The budget: met exactly, with nothing to spare that could be used, and said when out of reach."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from deploy.errors import StructureError
from toolchain.dean.budget import Budget
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.structure.cost import CostModel, measure
from toolchain.structure.groups import find_groups
from toolchain.structure.plan import Group

SHAPE = (3, 8, 8)


@cache
def parts() -> tuple[fx.GraphModule, tuple[Group, ...]]:
    torch.manual_seed(0)
    net = trace(registry.build("cifar_resnet", depth=8, width=8))
    groups = find_groups(net, SHAPE, trial=False)
    return net, tuple(group for group in groups if group.reason is None)


def budget(goal: dict[str, float], **fields: object) -> Budget:
    net, groups = parts()
    whole = {group.name: group.channels for group in groups}
    return Budget(CostModel(measure(net, SHAPE), groups), goal, whole, **fields)  # type: ignore[arg-type]


def scores(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.channels, generator=generator).double() for g in parts()[1]}


@given(
    st.integers(0, 10_000),
    st.sampled_from(["macs", "parameters", "sparsity"]),
    st.floats(0.25, 0.95),
    st.sampled_from([1, 4]),
)
def test_the_goal_is_met_and_no_group_could_be_wider(
    seed: int, name: str, value: float, align: int
) -> None:
    asked = budget({name: 1 - value if name == "sparsity" else value}, align=align)
    given_scores = scores(seed)
    kept = asked.project(given_scores)
    assert asked.unmet(kept.widths) == []
    for group, width in kept.widths.items():
        options = asked.options(group)
        assert width in options
        if width < options[-1]:
            wider = options[options.index(width) + 1]
            assert asked.unmet({**kept.widths, group: wider}) == [name]
        best = given_scores[group].topk(width).indices.tolist()
        assert list(kept.channels[group]) == sorted(best)


def test_channels_that_stay_score_more_than_the_price_or_fill_what_was_left() -> None:
    asked, given_scores = budget({"macs": 0.5}), scores(1)
    kept = asked.project(given_scores)
    dropped = [
        given_scores[name][c].item()
        for name, channels in kept.channels.items()
        for c in range(asked.channels[name])
        if c not in channels
    ]
    assert max(dropped) <= kept.price
    at_price = asked.priced(given_scores, kept.price)
    assert all(set(at_price.channels[n]) <= set(kept.channels[n]) for n in kept.channels)


def test_a_layer_with_more_strength_is_pruned_more() -> None:
    asked, even = budget({"macs": 0.5}), scores(2)
    plain = asked.project(even).widths
    name = max(plain, key=lambda n: plain[n])
    pressed = asked.project({**even, name: even[name] / 2}).widths
    assert pressed[name] < plain[name]
    assert sum(pressed.values()) - pressed[name] >= sum(plain.values()) - plain[name]


def test_a_goal_of_one_keeps_everything() -> None:
    asked = budget({"macs": 1.0})
    assert asked.project(scores(3)).widths == dict(asked.channels)


def test_several_goals_hold_together() -> None:
    asked = budget({"macs": 0.6, "parameters": 0.3})
    assert asked.unmet(asked.project(scores(4)).widths) == []


def test_a_goal_out_of_reach_says_how_far_one_gets() -> None:
    with pytest.raises(StructureError, match=r"macs 0.01 is out of reach; the smallest reachable"):
        budget({"macs": 0.01}, align=4).project(scores(5))


def test_dead_channels_all_equal_still_leave_every_layer_something() -> None:
    asked = budget({"macs": 0.3})
    nothing = {name: torch.zeros(count).double() for name, count in asked.channels.items()}
    kept = asked.project(nothing)
    assert asked.unmet(kept.widths) == []
    assert min(kept.widths.values()) >= 1


def test_widths_that_are_decided_are_kept_and_scores_choose_the_channels() -> None:
    decided = dict.fromkeys(budget({}).channels, 2)
    kept = budget({}, widths=decided).project(scores(6))
    assert kept.widths == decided
