"""What a student of the bench is taught: a teacher's terms, under one of the product's controllers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from toolchain.data.drawing import Drawing
from toolchain.data.samples import Data, Split
from toolchain.dean.controller import DeanController
from toolchain.distillation.building import recovery_objective
from toolchain.distillation.config import Distil, DistilLoss
from toolchain.distillation.lessons import Draw, School
from toolchain.distillation.teachers.config import PRETRAINED
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.training.objective import Batch, Objective
from toolchain.training.precision import Precision

LOSSES = {
    "kl": DistilLoss(loss="kl", strength=0.9, temperature=4.0),
    "at": DistilLoss(loss="at", spot="layer*", strength=1000.0),
}


def taught(
    network: fx.GraphModule,
    teacher: nn.Module,
    losses: Sequence[str],
    controller: str,
    data: Data,
    precision: Precision,
) -> tuple[Objective, int]:
    """The objective, and after how many steps a controller has done all that it does now and then."""
    precision.place(network)
    # The dean's share: of what else would be trained on, but noise costs the same wherever it is from.
    half = torch.arange(len(data.train) // 2)
    probe = _draw(data, data.train, "probe", precision)
    held_out = _draw(data, data.train.part(half), "held out", precision)
    school = School(network, precision, held_out=held_out, probe=probe)
    objective = recovery_objective(
        school,
        {PRETRAINED: FrozenTeacher(teacher, precision)},
        Distil(losses=tuple(LOSSES[name] for name in losses), controller=controller),
        probe(0, 2).images_BCHW,
        samples=len(data.train),
    )
    decides = objective.controller
    return objective, decides.probe_every if isinstance(decides, DeanController) else 1


def _draw(data: Data, split: Split, purpose: str, precision: Precision) -> Draw:
    drawing = Drawing(split, data.preprocess, 0, purpose, precision.device)

    def draw(number: int, size: int) -> Batch:
        images_BCHW, labels_B, index_B = drawing(number, size)
        return Batch(precision.images(images_BCHW), labels_B, index_B)

    return draw
