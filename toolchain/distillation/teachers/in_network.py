"""PQK's in-network teacher: the student's own tensors with the masked weights put back.

    f(x; Q(M . W) + (1 - M) . W)     activations in float, batch norms of its own

Kim, Chang, Kwak 2021, "PQK: Model Compression via Pruning, Quantization, and Knowledge Distillation",
Interspeech, https://arxiv.org/abs/2106.14681.  **Reconstruction**: that the batch norms are separate, and
that their statistics follow the batches on which the student trains.  Here the teacher learns nothing of
its own; in PQK's second phase (`toolchain.pqk`) the masked weights learn too.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deploy.errors import StructureError
from toolchain.distillation.spots import LOGITS, capture, require_reached
from toolchain.distillation.teachers.config import InNetwork
from toolchain.distillation.teachers.registry import teacher
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.quantization.attached import attach_teacher_norms, teacher_norms
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import WeightQuantizer
from toolchain.training.evaluation import eval_mode
from toolchain.training.precision import Precision

if TYPE_CHECKING:
    from toolchain.student import Student


class InNetworkTeacher:
    """The teacher's view of a student; a pass leaves every tensor of the student as it was.

    Args:
        network: The student, with views attached; shared, not copied.
        precision: Of the forward passes.
        follows: Whether the teacher's own batch norms take in the batches it observes while the student
            is in training mode. Their statistics are the teacher's, not the student's.
        moved_elsewhere: They normalize by those batches and keep nothing of them, because another pass of
            the same step moves their statistics.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: Precision,
        *,
        follows: bool = False,
        moved_elsewhere: bool = False,
    ) -> None:
        self.network, self._precision = network, precision
        self._norms = list(teacher_norms(network)) if follows else []
        self._kept = [  # min-max steps are written down by every forward pass
            module.scale_O
            for module in network.modules()
            if isinstance(module, WeightQuantizer) and module.kind == "minmax"
        ]
        if moved_elsewhere:
            self._kept += [kept for norm in self._norms for kept in norm.buffers()]

    def observe(self, images_BCHW: Tensor, spots: Sequence[str] = (LOGITS,)) -> dict[str, Tensor]:
        """What the teacher computes at ``spots``; detached, in the precision's number format.

        Raises:
            ConfigError: A spot that the network does not have or does not reach.
        """
        with (
            torch.no_grad(),
            self._precision.autocast(),
            self._as_teacher(),
            capture(self.network, spots) as found,
        ):
            self.network(images_BCHW)
        require_reached(found, spots)
        return found

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        """The teacher's view in eval mode, with its own norms in training where they follow."""
        before = [(kept, kept.clone()) for kept in self._kept]
        learning = self.network.training
        with eval_mode(self.network), use_view(self.network, View.TEACHER):
            for norm in self._norms:
                norm.train(learning)
            try:
                yield
            finally:
                for norm in self._norms:
                    norm.eval()
                for kept, was in before:
                    kept.copy_(was)


@teacher(
    "in-network",
    about="the student with its masked weights put back, while it is being pruned",
    source="Kim, Chang, Kwak 2021 (PQK)",
)
def build(config: InNetwork, student: Student, where: str) -> Teacher:
    """The teacher inside the student, with batch norms of its own from here on.

    Raises:
        StructureError: The student has no masks.
    """
    if not student.spec.masked:
        raise StructureError(
            f"{where}: an in-network teacher, and nothing is masked here; accepted is a student that is "
            "being pruned or is not cut yet; put the stage behind prune or pqk-prune, before slim"
        )
    attach_teacher_norms(student.network)
    student.spec = replace(student.spec, teacher_norms=True)
    return InNetworkTeacher(student.network, student.precision, follows=True)
