r"""Spot-adaptive distillation: not what is distilled but where, decided anew for every sample.

    L = s_task CE(z_s, y) + sum_i s_i (n_i / B) loss_i(the n_i samples with a_i = 1)

a_i = 1 sends a sample the teacher's way at spot i of the routing network: there the student is not yet a
good substitute, so there it is distilled. The agent learns from its own loss and moves before the student,
which takes the decisions as given. ``anti``, ``random`` and ``always`` are the paper's ablation.

Song, Chen, Ye, Song 2022, "Spot-adaptive Knowledge Distillation", IEEE TIP 31, arXiv 2205.02399. Axes: B
batch, S spots.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from toolchain.distillation.controllers.controller import Guidance, Stats, Steady, controller
from toolchain.distillation.controllers.spot_adaptive.agent import Agent
from toolchain.distillation.controllers.spot_adaptive.folding import folded
from toolchain.distillation.controllers.spot_adaptive.places import (
    decision_places,
    require_routes,
    routed_terms,
)
from toolchain.distillation.controllers.spot_adaptive.policy import annealed
from toolchain.distillation.lessons import Lesson, School
from toolchain.distillation.options import Positive
from toolchain.distillation.spots import spots_of
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.graph import trace
from toolchain.training.objective import Batch, Update

AGENT_LR = 0.5  # of the student's, in the released code
# Likewise, whatever the student's (5e-4 there), and of biases too: a head start is one, and is to wear off.
AGENT_DECAY = 1e-3
# Gamma by loss, likewise; 1 for all others.
GAMMA: Mapping[str, float] = {"at": 2.0, "vid": 2.0, "rkd": 2.0}


@controller(
    "spot-adaptive",
    about="SAKD: a policy decides for every sample at which spots it is distilled; not with exits (ofa) at "
    "inner spots",
    source="Song, Chen, Ye, Song 2022, IEEE TIP 31, arXiv 2205.02399",
    require_losses=require_routes,
    version=2,
)
class SpotAdaptive(Steady):
    """Decides for every sample at which spots it is distilled; strengths stay the recipe's.

    Args:
        school: Decisions are made at its terms' spots, and at the logits. All losses of one teacher are
            decided; a teacher inside the student (PQK's) is no route, and its losses see every sample.
            A recipe with the loss ``ofa`` at an inner spot is refused: its exit compares that spot with the
            teacher's logits, and a sample can only cross between two inner spots or between logits.
        decisions: ``policy``; or, to see what the policy is worth, ``anti`` (distil where it would
            not), ``random`` (fair coins), ``always``.
        gamma: At least 1: how much more the agent cares about samples' routes that are worse than the
            student alone; None takes 2 with at, vid or rkd, else 1.
        homo: Whether both networks are of one family, which starts by distilling everywhere; None asks
            whether the student has all of the teacher's outermost modules, by name, and no layers that
            the teacher has none of.
        tau: Temperature of the choices at the start.
        tau_end: At the end; the released code keeps 5, the paper lets it fall.

    Raises:
        ConfigError: Several teachers, or spots at which the two networks
            cannot be cut and joined.
    """

    def __init__(
        self,
        school: School,
        *,
        decisions: Literal["policy", "anti", "random", "always"] = "policy",
        gamma: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None,
        homo: bool | None = None,
        tau: Positive = 5.0,
        tau_end: Positive = 5.0,
    ) -> None:
        if gamma is None:
            gamma = max(
                (GAMMA.get(re.split("[@:]", term.name)[0], 1.0) for term in school.terms),
                default=1.0,
            )
        self._school, self._decisions = school, decisions
        self._taus, self._tau = (tau, tau_end), tau
        terms, self._teacher = routed_terms(school.terms, school.network)
        assert school.probe is not None, "whoever built the terms has images"
        images_BCHW = school.probe(0, 2).images_BCHW
        student = spots_of(school.network, images_BCHW)
        teacher = spots_of(self._teacher.network, images_BCHW)
        self._places = decision_places(terms, list(student), list(teacher))
        self._agent: Agent | None = None
        if decisions in ("policy", "anti"):
            routed = self._teacher.network
            if homo is None:
                homo = _of_one_family(routed, school.network)
            if isinstance(self._teacher, FrozenTeacher):
                routed = folded(trace(routed), self._places.teacher)
            self._agent = Agent(
                (school.network, routed),
                self._places,
                (student, teacher),
                head_start=homo,
                gamma=gamma,
                label_smoothing=school.label_smoothing,
                seed=school.seed,
            )
            school.precision.place(self._agent)
            school.watch(self._agent.student_spot)
            school.watch(self._agent.teacher_spot, self._teacher)
            # The routing network starts from there, also while the term there sleeps.
            school.watch(self._places.teacher[0], self._teacher)
            moved = list(self._agent.parameters())
            self.updates = (
                Update(
                    "agent",
                    moved,
                    self._loss,
                    lr_factor=AGENT_LR,
                    weight_decay=AGENT_DECAY,
                    decays_all=True,
                ),
            )
        self._noise = torch.Generator().manual_seed(school.seed)
        self._decided: tuple[weakref.ref[Lesson], Tensor] | None = None
        self._numbers: dict[str, Tensor] = {}

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """The recipe's."""
        self._tau = annealed(*self._taus, step / max(total_steps - 1, 1))
        return self._school.base

    def guide(self, lesson: Lesson) -> Guidance:
        """Which samples each term sees: as decided in the agent's update, if there was one."""
        if self._decided is None or self._decided[0]() is not lesson:
            self._decide(lesson)
        assert self._decided is not None
        decided_BS = self._decided[1]
        for column, name in enumerate(self._places.names):
            self._numbers[f"distilled.{name}"] = decided_BS[:, column].float().mean()
        columns = self._places.column
        seen = [term.name for term in lesson.terms if term.name in columns]
        return Guidance({name: decided_BS[:, columns[name]] for name in seen})

    def trail(self) -> Mapping[str, float | Tensor]:
        """Share of the samples distilled at each spot, and the agent's loss."""
        return dict(self._numbers)

    def state_dict(self) -> dict[str, Any]:
        """The agent, and where the noise has got to."""
        agent = {} if self._agent is None else self._agent.state_dict()
        return {"agent": agent, "noise": self._noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._agent is not None:
            self._agent.load_state_dict(state["agent"])
        self._noise.set_state(state["noise"].cpu())

    def _loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """The agent's."""
        assert self._agent is not None
        lesson = self._school.shared(batch)
        a_BS = self._decide(lesson)
        loss, routed = self._agent.loss(
            batch.images_BCHW, batch.labels_B, lesson.teacher(self._teacher), lesson.task(), a_BS
        )
        self._numbers["policy_loss"] = loss.detach()
        return loss, {"routed": routed}

    def _decide(self, lesson: Lesson) -> Tensor:
        """Choices [B, S] with their graph; what the student is to take from them is kept."""
        batch, spots = len(lesson.batch.labels_B), len(self._places.names)
        if self._agent is not None:
            features = lesson.student(), lesson.teacher(self._teacher)
            a_BS = self._agent.choose(*features, self._tau, self._noise)
        elif self._decisions == "random":
            a_BS = torch.rand(batch, spots, generator=self._noise).round()
        else:
            a_BS = torch.ones(batch, spots)
        distilled_BS = (a_BS.detach() > 0.5) ^ (self._decisions == "anti")
        self._decided = weakref.ref(lesson), distilled_BS.to(lesson.batch.labels_B.device)
        return a_BS


def _of_one_family(teacher: nn.Module, student: nn.Module) -> bool:
    """By names: a traced network has forgotten the classes that it was made of.

    The student may have lost blocks, or have quantizers; a Mixer has a Transformer's outermost modules, and
    other layers in its blocks.
    """
    return _parts(teacher) <= _parts(student) and _layers(student) <= _layers(teacher)


def _parts(network: nn.Module) -> set[str]:
    """Outermost modules that have weights."""
    return {
        name for name, child in network.named_children() if any(True for _ in child.parameters())
    }


def _layers(network: nn.Module) -> set[str]:
    """Paths of what has a weight, without numbers: ``layer1.conv2`` whichever block it is in."""
    ends = (".parametrizations.weight.original", ".weight")
    paths = (
        name.removesuffix(end)
        for name, _ in network.named_parameters()
        for end in ends
        if name.endswith(end)
    )
    return {".".join(part for part in path.split(".") if not part.isdigit()) for path in paths}
