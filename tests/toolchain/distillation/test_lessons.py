"""A school: losses that are fitted to their teacher are fitted once, also over a kill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.losses.factors import FactorTransfer
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.terms import Term
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

MAPS = (2, 3, 4, 4)


class Counting(FactorTransfer):
    """How often it was fitted, and on how many images."""

    fitted = 0

    def prepare(self, teacher_features: Iterable[Tensor]) -> None:
        seen = list(teacher_features)
        super().prepare(seen[:2])
        self.fitted += len(seen)


class Teacher:
    """Maps that are the images."""

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        return dict.fromkeys(spots, images_BCHW.detach())


def school() -> School:
    torch.manual_seed(5)
    loss = Counting(MAPS, MAPS, paraphraser_epochs=1)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(48, 4))
    made = School(network, choose_precision("float32", "cpu"), probe=batch)
    return replace(
        made, terms=(Term("ft", loss, Teacher(), "0", "0"),), base={TASK: 1.0, "ft": 1.0}
    )


def batch(number: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images_BCHW = torch.randn(4, *MAPS[1:], generator=generator)
    return Batch(images_BCHW, torch.arange(4), torch.arange(4))


def loss_of(made: School) -> Counting:
    (term,) = made.terms
    assert isinstance(term.loss, Counting)
    return term.loss


def test_a_loss_is_fitted_at_the_first_step_and_never_again() -> None:
    made = school()
    objective = DistillationObjective(made, FixedStrength(made))
    assert loss_of(made).fitted == 0
    for step in range(3):
        objective.begin_step(step, 3)
        objective.loss(batch(step, 4))
        assert loss_of(made).fitted == 64


def test_a_resumed_run_does_not_fit_what_its_checkpoint_brings() -> None:
    first = school()
    objective = DistillationObjective(first, FixedStrength(first))
    objective.begin_step(0, 3)
    second = school()
    resumed = DistillationObjective(second, FixedStrength(second))
    resumed.load_state_dict(objective.state_dict())
    resumed.begin_step(1, 3)
    assert loss_of(second).fitted == 0
    for one, other in zip(
        loss_of(first).paraphraser.parameters(),
        loss_of(second).paraphraser.parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_the_student_keeps_its_mode_while_a_loss_is_fitted() -> None:
    made = school()
    made.network.train()
    made.prepare()
    assert made.network.training
