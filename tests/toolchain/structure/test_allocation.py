"""Allocations keep their promises: goals met, bounds kept, nothing lost that need not be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploy.errors import ConfigError, StructureError
from toolchain.structure.allocation import allocate, smallest
from toolchain.structure.cost import Cost, CostModel, Layer
from toolchain.structure.plan import Branch, Group, Slice
from toolchain.structure.space import Allocation, widths_allowed

KINDS = ("local", "global", "macs", "latency")


class Steps:
    """Times as small integer convolutions have them: nothing falls between multiples of 16."""

    def widths(self, channels: int) -> tuple[int, ...]:
        return (*range(4, channels, 4), channels)

    def time_us(
        self,
        layer: Layer,
        in_channels: int,
        out_channels: int,
        adds: int = 0,
        precision: str = "int8",
    ) -> float:
        if not layer.positions:
            return 0.0

        def rounded(channels: int) -> int:
            ragged = 8 if channels % 16 else 0  # a width that is no multiple costs extra
            return -(-channels // 16) * 16 + ragged

        time = layer.positions * rounded(in_channels) * rounded(out_channels) / 1000 + 1 + 2 * adds
        return time * (3 if precision == "float" else 1)


def channels(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple((channel,) for channel in range(count))


def chain(widths: list[int], times: Steps | None = None) -> tuple[list[Group], CostModel]:
    """Layers in a row; each but the last is a group of its own."""
    sizes = [3, *widths, 10]
    layers = {
        f"l{i}": Layer("conv", sizes[i], sizes[i + 1], positions=16, kernel=(3, 3))
        for i in range(len(sizes) - 1)
    }
    groups = [
        Group(
            f"l{i}",
            width,
            (Slice(f"l{i}", "out", channels(width)), Slice(f"l{i + 1}", "in", channels(width))),
        )
        for i, width in enumerate(widths)
    ]
    return groups, CostModel(Cost(layers), groups, (), times)


def residual(
    blocks: int, width: int, inner: int, times: Steps | None = None
) -> tuple[list[Group], list[Branch], CostModel]:
    """A stem and blocks of two layers on one stream."""
    layers = {"stem": Layer("conv", 3, width, positions=16, kernel=(3, 3))}
    stream = [Slice("stem", "out", channels(width))]
    groups, branches = [], []
    for i in range(blocks):
        layers[f"b{i}.a"] = Layer("conv", width, inner, positions=16, kernel=(3, 3))
        layers[f"b{i}.b"] = Layer("conv", inner, width, positions=16, kernel=(3, 3))
        groups.append(
            Group(
                f"b{i}.a",
                inner,
                (Slice(f"b{i}.a", "out", channels(inner)), Slice(f"b{i}.b", "in", channels(inner))),
            )
        )
        stream += [
            Slice(f"b{i}.a", "in", channels(width)),
            Slice(f"b{i}.b", "out", channels(width)),
        ]
        branches.append(Branch(f"b{i}", f"add_{i}", 0, (f"b{i}.a", f"b{i}.b")))
    groups.insert(0, Group("stem", width, tuple(stream)))
    return groups, branches, CostModel(Cost(layers), groups, branches, times)


def scores_of(groups: list[Group], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.channels, generator=generator) + 0.01 for group in groups}


def check_bounds(
    allocation: Allocation,
    groups: list[Group],
    scores: Mapping[str, Tensor],
    align: int,
    max_sparsity: float,
) -> None:
    for group in groups:
        kept = allocation.kept[group.name]
        assert len(kept) in widths_allowed(group.channels, align, max_sparsity)
        assert list(kept) == sorted(set(kept))
        assert len(kept) >= group.channels * (1 - max_sparsity) - 1e-9 and kept
        left_out = set(range(group.channels)) - set(kept)
        worst = min(scores[group.name][list(kept)])
        assert all(scores[group.name][c] <= worst for c in left_out)


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    kind=st.sampled_from(KINDS),
    share=st.floats(0.0, 1.0),
    align=st.sampled_from([1, 4, 16]),
    max_sparsity=st.floats(0.0, 0.95),
)
def test_goal_met_in_bounds_or_refused(
    widths: list[int], seed: int, kind: str, share: float, align: int, max_sparsity: float
) -> None:
    groups, model = chain(widths, Steps() if kind == "latency" else None)
    scores = scores_of(groups, seed)
    try:
        allocation = allocate(
            groups,
            (),
            scores,
            model,
            kind=kind,
            goal={"macs": share},
            align=align,
            max_sparsity=max_sparsity,
        )
    except StructureError as error:
        least = smallest(groups, (), scores, model, align=align, max_sparsity=max_sparsity)
        reachable = model.share("macs", least.widths)
        assert reachable > share or kind == "latency"
        if kind != "latency":
            assert f"{reachable:.4f}" in str(error)
        return
    assert model.share("macs", allocation.widths) <= share + 1e-9
    check_bounds(allocation, groups, scores, align, max_sparsity)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_asked_keeps_all(kind: str) -> None:
    groups, branches, model = residual(3, 16, 16, Steps())
    for goal in ({"macs": 1.0}, {"sparsity": 0.0}):
        allocation = allocate(
            groups,
            branches,
            scores_of(groups),
            model,
            kind=kind,
            goal=goal,
            depth=kind in ("macs", "latency"),
        )
        assert allocation.widths == {group.name: group.channels for group in groups}
        assert allocation.removed == ()


@pytest.mark.parametrize("kind", ["local", "global"])
def test_more_sparsity_keeps_fewer_of_the_same_channels(kind: str) -> None:
    groups, model = chain([12, 30, 7])
    scores = scores_of(groups)
    allocations = [
        allocate(groups, (), scores, model, kind=kind, goal={"macs": share})
        for share in (1.0, 0.8, 0.6, 0.4, 0.2)
    ]
    for more, less in itertools.pairwise(allocations):
        assert all(set(less.kept[name]) <= set(more.kept[name]) for name in less.kept)


@pytest.mark.parametrize("kind", ["global", "macs"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_sparsity_is_of_all_channels(kind: str, sparsity: float) -> None:
    groups, model = chain([20, 40, 60])
    allocation = allocate(
        groups,
        (),
        scores_of(groups),
        model,
        kind=kind,
        goal={"sparsity": sparsity},
        max_sparsity=0.95,
    )
    assert sum(allocation.widths.values()) == pytest.approx(120 * (1 - sparsity), abs=1)


def test_local_sparsity_is_of_each_group() -> None:
    groups, model = chain([20, 40, 5])
    kept = allocate(
        groups, (), scores_of(groups), model, kind="local", goal={"sparsity": 0.5}
    ).widths
    assert kept == {"l0": 10, "l1": 20, "l2": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_layer_cannot_go(kind: str) -> None:
    groups, model = chain([8, 8], Steps())
    with pytest.raises(StructureError, match=r"sparsity 1 is out of reach; the largest reachable"):
        allocate(groups, (), scores_of(groups), model, kind=kind, goal={"sparsity": 1.0})
    with pytest.raises(StructureError, match=r"macs 0 is out of reach; the smallest reachable"):
        allocate(groups, (), scores_of(groups), model, kind=kind, goal={"macs": 0.0})


def test_global_cuts_where_scores_are_low() -> None:
    groups, model = chain([10, 10])
    scores = {"l0": torch.tensor([1.0] * 5 + [0.01] * 5), "l1": torch.ones(10) * 100}
    allocation = allocate(groups, (), scores, model, kind="global", goal={"sparsity": 0.25})
    assert allocation.widths == {"l0": 5, "l1": 10}


def test_macs_prefers_the_group_in_dearer_layers() -> None:
    groups, model = chain([16, 16])  # the second one also feeds the wider layer
    scores = {group.name: torch.ones(group.channels) for group in groups}
    kept = allocate(groups, (), scores, model, kind="macs", goal={"macs": 0.9}).widths
    assert kept["l0"] == 16 and kept["l1"] < 16


def test_macs_goes_by_the_scores() -> None:
    groups, model = chain([16, 16])
    scores = {"l0": torch.tensor([1.0] * 8 + [1e-3] * 8), "l1": torch.ones(16)}
    kept = allocate(groups, (), scores, model, kind="macs", goal={"macs": 0.7}).kept
    assert kept["l1"] == tuple(range(16)) and set(kept["l0"]) >= set(range(8))


def test_latency_never_takes_a_width_that_saves_no_time() -> None:
    groups, model = chain([32, 64, 48], Steps())
    kept = allocate(
        groups, (), scores_of(groups), model, kind="latency", goal={"latency": 0.15}, align=4
    ).widths
    assert all(width % 16 == 0 for width in kept.values())
    assert model.share("latency", kept) <= 0.15


def test_time_is_shared_with_the_float_network() -> None:
    _, model = chain([16, 16], Steps())
    assert model.share("latency", {}) == pytest.approx(1 / 3)


def test_branches_go_where_that_is_what_saves_time() -> None:
    groups, branches, model = residual(4, 16, 16, Steps())  # no narrower multiple of 16 exists
    allocation = allocate(
        groups,
        branches,
        scores_of(groups),
        model,
        kind="latency",
        goal={"latency": 0.2},
        align=4,
        depth=True,
        contributions={"b0": 0.9, "b1": 0.1, "b2": 0.5, "b3": 0.2},
    )
    assert [branch.name for branch in allocation.removed] == ["b1", "b3"]
    assert set(allocation.kept) == {"stem", "b0.a", "b2.a"}
    assert model.share("latency", allocation.widths, allocation.removed) <= 0.2


def test_some_depth_is_left() -> None:
    groups, branches, model = residual(4, 16, 16)
    least = smallest(groups, branches, scores_of(groups), model, depth=True, max_sparsity=0.8)
    assert len(least.removed) == 3
    reachable = model.share("macs", least.widths, least.removed)
    allocation = allocate(
        groups,
        branches,
        scores_of(groups),
        model,
        kind="macs",
        depth=True,
        goal={"macs": reachable + 1e-6},
        max_sparsity=0.8,
    )
    assert len(allocation.removed) <= 3


@pytest.mark.parametrize("kind", ["local", "global"])
def test_depth_needs_a_greedy_kind(kind: str) -> None:
    groups, branches, model = residual(2, 8, 8)
    with pytest.raises(ConfigError, match="allocation"):
        allocate(
            groups, branches, scores_of(groups), model, kind=kind, goal={"macs": 0.5}, depth=True
        )


def test_two_goals_hold_together() -> None:
    groups, branches, model = residual(4, 32, 32, Steps())
    allocation = allocate(
        groups,
        branches,
        scores_of(groups),
        model,
        kind="latency",
        depth=True,
        goal={"latency": 0.25, "macs": 0.3, "parameters": 0.4},
    )
    for name, share in (("latency", 0.25), ("macs", 0.3), ("parameters", 0.4)):
        assert model.share(name, allocation.widths, allocation.removed) <= share


def test_what_is_not_needed_is_given_back() -> None:
    groups, model = chain([16, 16, 16])
    scores = scores_of(groups)
    allocation = allocate(groups, (), scores, model, kind="macs", goal={"macs": 0.6})
    for group in groups:
        width = allocation.widths[group.name]
        if width < group.channels:
            wider = {**allocation.widths, group.name: width + 1}
            assert model.share("macs", wider) > 0.6


def test_groups_that_cannot_be_cut_are_left_alone() -> None:
    groups, model = chain([8, 8])
    stuck = [Group("l0", 8, groups[0].slices, "because"), groups[1]]
    scores = {"l1": torch.rand(8)}
    model = CostModel(model.cost, stuck)
    allocation = allocate(stuck, (), scores, model, kind="macs", goal={"macs": 0.7})
    assert set(allocation.kept) == {"l1"}


def test_explicit_widths_and_branches() -> None:
    groups, branches, model = residual(3, 8, 6)
    allocation = allocate(
        groups,
        branches,
        scores_of(groups),
        model,
        kind="global",
        goal={},
        channels={"b*.a": 2, "stem": 5},
        drop=["b1"],
    )
    assert allocation.widths == {"stem": 5, "b0.a": 2, "b2.a": 2}
    assert allocation.removed == (branches[1],)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"channels": {"nope*": 2}}, "'nope\\*' matches no group"),
        ({"channels": {"stem": 9}}, "accepted is 1 to 8"),
        ({"drop": ["b7"]}, "'b7' matches no branch"),
        ({"drop": ["b1"]}, "used elsewhere"),
        ({"goal": {}}, "nothing says how small"),
        ({"goal": {"maks": 0.5}}, "'maks'"),
        ({"goal": {"macs": 1.5}}, "share in \\[0, 1\\]"),
        ({"goal": {"latency": 0.5}}, "without measured times"),
        ({"kind": "latency"}, "without measured times"),
    ],
)
def test_contradictions_are_told(settings_: dict[str, object], message: str) -> None:
    groups, branches, model = residual(2, 8, 6)
    branches[1] = Branch("b1", "add_1", 0, branches[1].modules, "x is used elsewhere")
    arguments = {"kind": "macs", "goal": {"macs": 0.5}, **settings_}
    with pytest.raises(ConfigError, match=message):
        allocate(groups, branches, scores_of(groups), model, **arguments)  # type: ignore[arg-type]
