"""DDSL's student: drawn to Z while it learns, then masked for good; a killed run goes on to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from toolchain.dean.admm import ChannelGroup
from toolchain.dean.budget import Budget
from toolchain.dean.controller import DeanController
from toolchain.dean.objective import PruningByAdmm
from toolchain.dean.sparsifier import AdmmSparsifier
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.graph import trace
from toolchain.quantization.attached import attach_views
from toolchain.structure.cost import CostModel, measure
from toolchain.structure.groups import find_groups
from toolchain.structure.masks import HeldStill, kept_channels, mask_channels
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

SHAPE = (3, 6, 6)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def draw(number: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, *SHAPE, generator=generator)
    return Batch(images, images.mean((2, 3)).argmax(1))


class Run:
    """A small training under ADMM, with a dean."""

    def __init__(self, step: str = "projection", fixed_from: float = 0.5) -> None:
        torch.manual_seed(1)
        self.lines: list[str] = []
        precision = choose_precision("float32", "cpu")
        net = trace(network())
        groups = [g for g in find_groups(net, SHAPE, trial=False) if g.reason is None]
        cost = CostModel(measure(net, SHAPE), groups)
        whole = {group.name: group.channels for group in groups}
        attach_views(net)
        self.sparsifier = AdmmSparsifier(
            [ChannelGroup(group, net) for group in groups],
            Budget(cost, {"macs": 0.4}, whole),
            {"0": 8, "3": 4},
            rho=0.5,
            step=step,  # type: ignore[arg-type]
        )
        teacher = FrozenTeacher(network(), precision)
        school = School(
            net,
            precision,
            (Term("kl", kl, teacher),),
            {TASK: 1.0, "kl": 0.5},
            held_out=lambda number, size: draw(10_000 + number, size),
            probe=draw,
            sparsifier=self.sparsifier,
        )
        dean = DeanController(school, probe_every=5, probe_size=32, lr=0.02, trust_probes=0)
        held = HeldStill(net)
        base = DistillationObjective(school, dean, guard=lambda: held.only("important"))
        self.network, self.groups = net, groups
        self.objective = PruningByAdmm(
            net,
            base,
            self.sparsifier,
            lambda kept: mask_channels(net, groups, kept),
            step_size=lambda step, total: 0.5,
            every=4,
            fixed_from=fixed_from,
            say=self.lines.append,
        )
        (self.update,) = self.objective.updates
        self.optimizer = torch.optim.SGD(self.update.parameters, 0.05, momentum=0.9)
        self.trails: list[dict[str, float]] = []
        self.terms: list[set[str]] = []

    def go(self, start: int, stop: int, total: int = 60) -> None:
        self.network.train()
        for step in range(start, stop):
            self.objective.begin_step(step, total)
            loss, terms = self.update.loss(draw(500 + step, 32))
            self.optimizer.zero_grad()
            loss.backward()
            assert self.update.guard is not None
            with self.update.guard():
                self.optimizer.step()
            assert self.update.after is not None
            self.update.after()
            self.trails.append(dict(self.objective.trail()))  # type: ignore[arg-type]
            self.terms.append(set(terms))


@pytest.mark.parametrize("step", ["projection", "multiplier"])
def test_the_goal_is_met_by_the_masks_and_they_stay(step: str) -> None:
    run = Run(step)
    run.go(0, 30)
    assert kept_channels(run.network, run.groups) == {}
    run.go(30, 31)
    kept = {n: len(c) for n, c in kept_channels(run.network, run.groups).items()}
    assert kept and run.sparsifier.budget.unmet(kept) == []
    run.go(31, 60)
    assert {n: len(c) for n, c in kept_channels(run.network, run.groups).items()} == kept
    assert all("admm" in terms for terms in run.terms[:30])
    assert not any("admm" in terms for terms in run.terms[30:])
    assert run.objective.status()["sparsity"] > 0.3


def test_the_dean_sets_a_strength_for_every_layer_until_the_masks_are_fixed() -> None:
    run = Run()
    run.go(0, 40)
    first, later, last = run.trails[0], run.trails[29], run.trails[39]
    assert first["sparsity_strength.0"] == first["sparsity_strength.3"] == 1.0
    assert later["sparsity_strength.0"] != 1.0 and 0 < later["sparsity_strength.3"] < 2
    assert "sparsity_strength.0" not in last and "strength.kl" in last
    assert "sparsity_hypergradient.3" in run.trails[5] and "sparsity.0" in run.trails[5]


def test_a_multiplier_without_time_is_said() -> None:
    run = Run("multiplier", fixed_from=0.0)
    run.go(0, 1)
    assert len(run.lines) == 1 and "had not met the goals" in run.lines[0]
    assert run.sparsifier.kept is not None
    assert run.sparsifier.budget.unmet(run.sparsifier.kept.widths) == []


def test_masks_are_fixed_at_the_end_at_the_latest() -> None:
    run = Run(fixed_from=1.0)
    run.go(0, 60)
    assert kept_channels(run.network, run.groups) == {}
    run.objective.finish()
    run.objective.finish()
    assert kept_channels(run.network, run.groups) != {}


@pytest.mark.parametrize("stop", [17, 45])
def test_a_resumed_run_is_the_same_run(stop: int, tmp_path: Path) -> None:
    whole, first, second = Run(), Run(), Run()
    whole.go(0, 60)
    first.go(0, stop)
    state = [part.state_dict() for part in (first.network, first.optimizer, first.objective)]
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, saved in zip(
        (second.network, second.optimizer, second.objective), loaded, strict=True
    ):
        part.load_state_dict(saved)  # type: ignore[attr-defined]
    second.go(stop, 60)
    assert second.trails == whole.trails[stop:]
    left, right = second.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
