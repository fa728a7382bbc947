r"""SAKD's agent: the policy and the adaptation layers, and the loss that trains them alone.

    L_R = w CE(z_r, y) + max(0, B / 2 - sum_B a_last),   w = gamma where CE(z_r) > CE(z_s), else 1 / gamma

z_r are the routing network's logits and z_s the student's. The hinge keeps at least half of a batch on the
teacher's way at the logits. Song, Chen, Ye, Song 2022, arXiv 2205.02399; hinge and gamma are only in the
released code. Axes: B batch, C classes, S spots.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.distillation.controllers.spot_adaptive.crossings import crossings
from toolchain.distillation.controllers.spot_adaptive.places import Places
from toolchain.distillation.controllers.spot_adaptive.policy import (
    TEACHER,
    Policy,
    channels,
    gumbel,
    straight_through,
)
from toolchain.distillation.controllers.spot_adaptive.routing import RoutingNetwork
from toolchain.distillation.slices import slice_network
from toolchain.distillation.spots import PENULTIMATE
from toolchain.graph import trace

Features = Mapping[str, Tensor]


class Agent(nn.Module):
    """Decides, routes, and says how well that went.

    Args:
        networks: The student and its teacher.
        places: Where it decides.
        shapes: Of the features at each spot of the student, and of the teacher.
        head_start: Whether every sample is distilled everywhere at first.
        gamma: At least 1.
        label_smoothing: Of the cross-entropy.
        seed: Of the first weights.

    Attributes:
        student_spot: Where the policy looks at the student: before its last linear layer, or at the last
            of the places where it has none.
        teacher_spot: Likewise of the teacher.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        places: Places,
        shapes: tuple[Mapping[str, torch.Size], Mapping[str, torch.Size]],
        *,
        head_start: bool,
        gamma: float,
        label_smoothing: float,
        seed: int,
    ) -> None:
        super().__init__()
        student, teacher = shapes
        self.student_spot = PENULTIMATE if PENULTIMATE in student else places.student[-1]
        self.teacher_spot = PENULTIMATE if PENULTIMATE in teacher else places.teacher[-1]
        pairs = {
            ours: (student[ours], teacher[theirs])
            for ours, theirs in zip(places.student, places.teacher, strict=True)
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(
                channels(teacher[self.teacher_spot]),
                channels(student[self.student_spot]),
                len(places.names),
                head_start=head_start,
            )
            self.across = crossings(pairs)
        student_pieces = slice_network(trace(networks[0]), places.student)
        teacher_pieces = slice_network(trace(networks[1]), places.teacher)
        self._routing = RoutingNetwork(networks[0], student_pieces, teacher_pieces, self.across)
        self._first = places.teacher[0]
        self._gamma, self._label_smoothing = gamma, label_smoothing

    def choose(
        self, student: Features, teacher: Features, tau: float, noise: torch.Generator
    ) -> Tensor:
        """Ones [B, S] where a sample is to take the teacher's way, else zeros, with the policy's graph."""
        v_BS2 = self.policy(teacher[self.teacher_spot], student[self.student_spot])
        noise_BS2 = gumbel(v_BS2.shape, noise).to(v_BS2.device, non_blocking=True)
        return straight_through(v_BS2, noise_BS2, tau)[..., TEACHER]

    def loss(
        self, images_BCHW: Tensor, labels_B: Tensor, teacher: Features, task: Tensor, a_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the routed cross-entropy in it.

        Args:
            images_BCHW: The batch.
            labels_B: Its classes.
            teacher: The teacher's features of it.
            task: The student's own cross-entropy.
            a_BS: From ``choose``.
        """
        z_r_BC = self._routing.logits(images_BCHW, teacher[self._first], a_BS)
        routed = F.cross_entropy(z_r_BC, labels_B, label_smoothing=self._label_smoothing)
        weight = torch.where(routed.detach() > task.detach(), self._gamma, 1.0 / self._gamma)
        hinge = F.relu(len(a_BS) / 2 - a_BS[:, -1].sum())
        return weight * routed + hinge, routed.detach()
