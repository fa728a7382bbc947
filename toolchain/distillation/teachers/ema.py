"""The moving average of the student's own weights as its teacher.

    w_T <- d w_T + (1 - d) w_S    once a step,   d = min(decay, (1 + t) / (10 + t))

Tarvainen, Valpola 2017, "Mean teachers are better role models", NeurIPS,
https://arxiv.org/abs/1703.01780, section 2; the ramp of d follows the paper's advice to forget faster at
first.  Batch-norm statistics are averaged too; masks and other facts are the student's of the moment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from toolchain.distillation.spots import LOGITS
from toolchain.distillation.teachers.config import MovingAverage
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.teachers.registry import teacher
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.training.averaging import averaged_tensors
from toolchain.training.precision import Precision

if TYPE_CHECKING:
    from toolchain.student import Student


class AveragedTeacher:
    """A copy of the student that follows it slowly.

    Args:
        network: The student, on its device.
        precision: Of the copy's forward passes.
        decay: In [0, 1); the largest share of the average that a step keeps.
    """

    def __init__(self, network: nn.Module, precision: Precision, decay: float) -> None:
        self._student, self._decay = network, decay
        twin = precision.place(copy.deepcopy(network))
        # Before the copy is frozen, and in the same order.
        self._pairs = averaged_tensors(twin), averaged_tensors(network)
        averaged = {tensor.data_ptr() for tensor in self._pairs[0]}
        self._facts = [
            name
            for name, tensor in twin.state_dict().items()
            if tensor.data_ptr() not in averaged and not name.endswith("num_batches_tracked")
        ]
        self._frozen = FrozenTeacher(twin, precision)
        self.network = self._frozen.network

    def observe(self, images_BCHW: Tensor, spots: Sequence[str] = (LOGITS,)) -> dict[str, Tensor]:
        """What the average computes at ``spots``; as a frozen teacher."""
        return self._frozen.observe(images_BCHW, spots)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the student as it is before ``step``; before the first one both are the same."""
        decay = min(self._decay, step / (9 + step))
        get_ema_multi_avg_fn(decay)(*map(list, self._pairs), step)
        if self._facts:
            facts = self._student.state_dict()
            self.network.load_state_dict({name: facts[name] for name in self._facts}, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.network.load_state_dict(state)


@teacher(
    "ema",
    about="the moving average of the student's own weights",
    source="Tarvainen and Valpola 2017",
)
def build(config: MovingAverage, student: Student, where: str) -> Teacher:
    """The average, which starts at the student as it is."""
    return AveragedTeacher(student.network, student.precision, config.decay)
