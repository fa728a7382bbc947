"""One supervision term: a loss between what a student and a teacher compute at a spot.

    s_i loss_i(adapt_i(student at spot_i), teacher_i at spot_i)

Axes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from toolchain.distillation.spots import LOGITS
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.training.objective import Batch

# One path, or the two that a loss between layers compares (FSP).
Spot = str | tuple[str, str]
Feature = Tensor | tuple[Tensor, ...]


@runtime_checkable
class FittedLoss(Protocol):
    """A loss that learns of its teacher alone, before the student's first step."""

    @property
    def ready(self) -> bool:
        """Whether it has, here or in the run whose state was loaded."""
        ...

    def prepare(self, teacher_features: Iterable[Tensor]) -> None:
        """Learn from these batches of the teacher's features."""
        ...


@dataclass(frozen=True)
class Term:
    """One distillation loss between a student and a teacher.

    Attributes:
        name: Key of its strength and of its value in the log.
        loss: ``loss(student, teacher, **needed)``: a function, or a module that is trained along.
        teacher: Whose features.
        spot: Where the teacher is looked at.
        student_spot: Where the student is.
        adapter: Brings the student's features to the teacher's shape, or None.
        needs: What else of the batch the loss looks at: ``labels_B``, ``index_B``.
    """

    name: str
    loss: Callable[..., Tensor]
    teacher: Teacher
    spot: Spot = LOGITS
    student_spot: Spot = LOGITS
    adapter: nn.Module | None = None
    needs: frozenset[str] = field(default_factory=frozenset)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What is trained along with the student, and never ships."""
        return tuple(part for part in (self.adapter, self.loss) if isinstance(part, nn.Module))

    def value(
        self,
        student: Feature,
        teacher: Feature,
        batch: Batch,
        samples_B: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The loss between two features, before its strength.

        Args:
            student: At ``student_spot``, with its graph.
            teacher: At ``spot``.
            batch: Whose features they are.
            samples_B: Which samples count (bool); the loss of n of B samples is scaled by n / B, and
                without any it is zero.
            **options: Further keyword arguments of the loss.
        """
        adapted = student if self.adapter is None else self.adapter(student)
        needed: dict[str, Any] = {name: getattr(batch, name) for name in self.needs}
        if samples_B is None:
            return self.loss(adapted, teacher, **needed, **options)
        index_N = samples_B.nonzero()[:, 0]
        if len(index_N) == len(samples_B):  # no copies of what is taken whole
            return self.loss(adapted, teacher, **needed, **options)
        if not len(index_N):
            first = adapted if isinstance(adapted, Tensor) else adapted[0]
            return (first.float() * 0.0).sum()
        chosen = {name: value[index_N] for name, value in needed.items()}
        loss = self.loss(_rows(adapted, index_N), _rows(teacher, index_N), **chosen, **options)
        return loss * (len(index_N) / len(samples_B))


def spots_of(spot: Spot) -> tuple[str, ...]:
    """The paths that a spot names."""
    return (spot,) if isinstance(spot, str) else spot


def feature_at(found: Mapping[str, Tensor], spot: Spot) -> Feature:
    """What was found at a spot: a tensor, or a pair of them."""
    return found[spot] if isinstance(spot, str) else tuple(found[one] for one in spot)


def _rows(feature: Feature, index_N: Tensor) -> Feature:
    if isinstance(feature, Tensor):
        return torch.index_select(feature, 0, index_N)
    return tuple(torch.index_select(one, 0, index_N) for one in feature)
