"""PQK: prune and quantize a network, then let what was pruned teach what is left.

    phase 1   student  f(x; Q(M . W))           L = CE(z_s, y)
              sparsity along  s_t = s_f + (s_i - s_f)(1 - (t - t_0) / n)^3    (Zhu and Gupta 2017, eq. 1)
    phase 2   teacher  f(x; Q(M . W) + (1 - M) . W)
              L_T = CE(z_t, y) + m . KL_T(sg z_s || z_t)            moves (1 - M) . W
              L_S = (1 - l) . CE(z_s, y) + l . KL_T(sg z_t || z_s)  moves M . W

Kim, Chang, Kwak 2021, "PQK: Model Compression via Pruning, Quantization, and Knowledge Distillation",
Interspeech, https://arxiv.org/abs/2106.14681.

From the paper's abstract: the two phases, the teacher made of the pruned network and its unused weights,
one set of tensors for both. **Reconstruction**, because the paper's body was not at hand and no code is
public: the importance criterion, the ramp, freezing weights at the moment they are masked, which weights
each loss moves, separate batch norms, the order of the two updates, the mutual term, and every default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.spots import LOGITS
from toolchain.distillation.teachers.in_network import InNetworkTeacher
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.distillation.terms import Term
from toolchain.quantization.attached import (
    latent_parameter,
    teacher_norms,
    weight_view,
    weighted,
)
from toolchain.quantization.views import View, use_view
from toolchain.structure.masks import HeldStill, hidden_share, mask_channels, mask_weights
from toolchain.structure.plan import Branch, Group
from toolchain.training.objective import Batch, Objective, Update, trainable
from toolchain.training.optimizers import quantizer_scales

Scores = Callable[[Group], Tensor]

# Name of the in-network teacher's term: of its strength, and in the log.
IN_NETWORK_KL = "in_network_kl"


def cubic_ramp(step: int, start: int, end: int, initial: float, final: float) -> float:
    """Sparsity at ``step``: ``initial`` until ``start``, ``final`` from ``end`` on (Zhu and Gupta 2017).

    >>> cubic_ramp(0, 0, 10, 0.0, 0.8), cubic_ramp(10, 0, 10, 0.0, 0.8)
    (0.0, 0.8)
    """
    if step >= end:
        return final
    if step <= start:
        return initial
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** 3


class ChannelPruner:
    """Moves the masks of channel groups from whole to the final widths.

    Args:
        network: Views attached.
        groups: All groups of the network.
        kept: Final number of channels of each group that is cut.
        removed: Branches that are gone at the end; their inner groups shrink along with the rest.
        scores: Importance [channels] of a group's channels as the latent weights are now.
        bypassed: Paths of the activation quantizers that vanish with the removed branches; asked for
            when they do, because quantizers may be attached after the pruner is made.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        groups: Sequence[Group],
        kept: Mapping[str, int],
        removed: Sequence[Branch],
        scores: Scores,
        bypassed: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._network, self._groups, self._removed, self._scores = network, groups, removed, scores
        self._kept, self._bypassed = dict(kept), bypassed
        gone = {name for branch in removed for name in branch.modules}
        self._inside = {
            group.name
            for group in groups
            if all(part.module in gone for part in group.slices if part.axis == "out")
        }

    def channels(self, done: float) -> dict[str, tuple[int, ...]]:
        """The channels each group keeps when this share of the way, in [0, 1], has been gone."""
        kept: dict[str, tuple[int, ...]] = {}
        for group in self._groups:
            final = 0 if group.name in self._inside else self._kept.get(group.name, group.channels)
            count = group.channels - round(done * (group.channels - final))
            if count < group.channels:
                with use_view(self._network, View.LATENT):
                    best = self._scores(group).topk(count).indices
                kept[group.name] = tuple(sorted(best.tolist()))
        return kept

    def apply(self, done: float) -> None:
        """Set the masks for this share of the way."""
        removed = self._removed if done >= 1 else ()
        bypassed = self._bypassed() if removed else ()
        mask_channels(self._network, self._groups, self.channels(done), removed, bypassed)

    def keep(self, channels: Mapping[str, Sequence[int]]) -> None:
        """Set the final masks so that these channels of each group stay, whatever the scores say."""
        bypassed = self._bypassed() if self._removed else ()
        mask_channels(self._network, self._groups, channels, self._removed, bypassed)


class WeightPruner:
    """Moves the masks of single weights from whole to the final sparsity."""

    def __init__(self, network: nn.Module, sparsity: float) -> None:
        self._network, self._sparsity = network, sparsity

    def apply(self, done: float) -> None:
        """Set the masks for this share of the way, in [0, 1]."""
        with use_view(self._network, View.LATENT):
            mask_weights(self._network, done * self._sparsity)


class PruningObjective:
    """Phase 1: another objective, minimized while the masks follow the ramp.

    Args:
        network: What is pruned.
        base: Its loss, e.g. cross-entropy; its updates are guarded by ``guard`` of this module.
        pruner: Sets the masks.
        ramp: Shares of the phase, in [0, 1], at which the ramp starts and ends; the rest is recovery
            with fixed masks.
        every: Steps between two settings of the masks.
        bits: Shown beside the sparsity.
    """

    def __init__(
        self,
        network: nn.Module,
        base: Objective,
        pruner: ChannelPruner | WeightPruner,
        *,
        ramp: tuple[float, float] = (0.0, 0.5),
        every: int = 50,
        bits: int = 8,
    ) -> None:
        self._network, self._base, self._pruner = network, base, pruner
        self._ramp, self._every, self._bits = ramp, every, bits
        self._done = -1.0
        self._sparsity = 0.0
        self.updates = base.updates

    def begin_step(self, step: int, total_steps: int) -> None:
        """Set the masks when their time has come."""
        self._base.begin_step(step, total_steps)
        start, end = (round(share * total_steps) for share in self._ramp)
        done = cubic_ramp(step, start, end, 0.0, 1.0)
        if done != self._done and (step % self._every == 0 or done == 1.0):
            self.set_masks(done)

    def finish(self) -> None:
        """Set the final masks if the ramp reached the end of the phase."""
        if self._done < 1:
            self.set_masks(1.0)

    def set_masks(self, done: float) -> None:
        """Go this share of the way, in [0, 1]."""
        self._pruner.apply(done)
        self._done, self._sparsity = done, hidden_share(self._network)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self._base.state_dict(), "done": self._done, "sparsity": self._sparsity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._base.load_state_dict(state["base"])
        self._done, self._sparsity = state["done"], state["sparsity"]

    def trail(self) -> Mapping[str, float | Tensor]:
        """The other objective's."""
        return self._base.trail()

    def status(self) -> dict[str, float]:
        return {**self._base.status(), "sparsity": self._sparsity, "bits": float(self._bits)}


class Lecture:
    """Phase 2's teacher as the student's terms see it: the logits of this step's own pass.

    Args:
        otherwise: The same teacher for any other batch, e.g. a dean's probe.
    """

    def __init__(self, otherwise: Teacher) -> None:
        self._otherwise = otherwise
        self._given: tuple[Tensor, Tensor] | None = None

    def give(self, images_BCHW: Tensor, logits_BC: Tensor) -> None:
        """Keep what the teacher's update has computed for these images."""
        self._given = (images_BCHW, logits_BC.detach())

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        """The logits that were given, if it is these images' and nothing else is asked for."""
        if self._given is not None and self._given[0] is images_BCHW and list(spots) == [LOGITS]:
            return {LOGITS: self._given[1]}
        return self._otherwise.observe(images_BCHW, spots)


class Learn(Protocol):
    """Makes the student's objective of phase 2."""

    def __call__(
        self, school: School, term: Term, strength: float, **options: Any
    ) -> DistillationObjective:
        """With the in-network teacher's term among its terms; ``options`` are the objective's."""
        ...


def learn_alone(
    school: School, term: Term, strength: float, **options: Any
) -> DistillationObjective:
    """The labels and the in-network teacher, at fixed strengths."""
    school = school.with_terms((term,), {TASK: 1 - strength, term.name: strength})
    return DistillationObjective(school, FixedStrength(school), **options)


class TwoNetworks:
    """Phase 2: the in-network teacher learns the labels, and the student learns from both.

    Args:
        network: Masked, quantized, with the teacher's batch norms attached.
        strength: l, of the distillation term, in [0, 1].
        temperature: T of both KL terms.
        mutual: m, of the term that draws the teacher to the student; 0 switches it off.
        teacher_updates: ``unimportant`` lets the teacher move only the weights the student has not;
            ``all`` makes a two-width slimmable network of the pair.
        quantize_teacher: Whether the teacher's extra weights are quantized too.
        school: Around the student; default one without data of its own.
        learn: The student's side, e.g. with further teachers or a dean.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        *,
        strength: float = 0.5,
        temperature: float = 4.0,
        mutual: float = 0.0,
        teacher_updates: Literal["unimportant", "all"] = "unimportant",
        quantize_teacher: bool = False,
        school: School | None = None,
        learn: Learn = learn_alone,
    ) -> None:
        school = School(network) if school is None else school
        self._network, self._temperature, self._mutual = network, temperature, mutual
        self._smoothing = school.label_smoothing
        self._sparsity = hidden_share(network)  # masks are fixed in this phase
        for module in network.modules():
            view = weight_view(module)
            if view is not None:
                view.quantize_teacher = quantize_teacher
                view.route_teacher = teacher_updates == "unimportant"
        self._held = HeldStill(network)
        norms = [p for norm in teacher_norms(network) for p in norm.parameters()]
        of_teacher = {id(p) for p in norms}
        student = [p for p in trainable(network) if id(p) not in of_teacher]
        routed = teacher_updates == "unimportant"
        self._lecture = Lecture(InNetworkTeacher(network, school.precision))
        self._student = learn(
            replace(school, parameters=tuple(student)),
            Term(IN_NETWORK_KL, partial(kl, temperature=temperature), self._lecture),
            strength,
            scales=quantizer_scales(network),
            guard=self._important,
        )
        teacher = Update(
            "teacher",
            [*norms, *_latent_layers(network)],
            self._teacher_loss,
            guard=self._unimportant if routed else None,
        )
        self.updates = (teacher, *self._student.updates)

    def _important(self) -> AbstractContextManager[None]:
        return self._held.only("important")

    def _unimportant(self) -> AbstractContextManager[None]:
        return self._held.only("unimportant")

    def _teacher_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float | Tensor]]:
        # Before the teacher's pass, whose gradient needs its buffers as that pass leaves them.
        z_s_BC = self._student_logits_untouched(batch) if self._mutual else None
        with use_view(self._network, View.TEACHER):
            z_t_BC = self._network(batch.images_BCHW).float()
        self._lecture.give(batch.images_BCHW, z_t_BC)
        loss = F.cross_entropy(z_t_BC, batch.labels_B, label_smoothing=self._smoothing)
        terms: dict[str, float | Tensor] = {"task": loss}
        if z_s_BC is not None:
            terms["mutual"] = kl(z_t_BC, z_s_BC, temperature=self._temperature)
            loss = loss + self._mutual * terms["mutual"]
        return loss, terms

    def _student_logits_untouched(self, batch: Batch) -> Tensor:
        """The student's logits without a gradient and without a trace in any buffer."""
        with torch.no_grad():
            before = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
            logits_BC: Tensor = self._network(batch.images_BCHW).float()
            for buffer, was in before:
                buffer.copy_(was)
        return logits_BC

    def begin_step(self, step: int, total_steps: int) -> None:
        """Masks are fixed in this phase; strengths are the student's controller's."""
        self._student.begin_step(step, total_steps)

    def trail(self) -> Mapping[str, float | Tensor]:
        """The student's strengths, where they change."""
        return self._student.trail()

    def state_dict(self) -> dict[str, Any]:
        return {"student": self._student.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._student.load_state_dict(state["student"])

    def status(self) -> dict[str, float]:
        return {"sparsity": self._sparsity}


def _latent_layers(network: nn.Module) -> list[nn.Parameter]:
    """Latent weights and biases of the layers that student and teacher share."""
    return [
        latent_parameter(module, name)
        for _, module in weighted(network)
        for name in ("weight", "bias")
        if getattr(module, name) is not None
    ]
