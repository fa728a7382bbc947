"""The recipe's model as a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.distillation.teachers.config import Pretrained
from toolchain.distillation.teachers.registry import teacher
from toolchain.distillation.teachers.teacher import Teacher

if TYPE_CHECKING:
    from toolchain.student import Student


@teacher(
    "pretrained",
    about="the recipe's model; always there under this name",
    source="Hinton, Vinyals, Dean 2015",
)
def build(config: Pretrained, student: Student, where: str) -> Teacher:
    """The network that the chain started with; the stage ``teacher`` checked its classes."""
    return student.teacher()
