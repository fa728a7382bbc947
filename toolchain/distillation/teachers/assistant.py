"""The student as an earlier stage left it, as the teacher of the next one: teacher-assistant chains.

    teacher -> student (mid-size) -> recover -> student (small) -> recover, taught by the mid-size one

A student learns less from a teacher that is too far above it; a network in between learns from the teacher
and teaches the student.  Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh 2020, "Improved Knowledge
Distillation via Teacher Assistant", AAAI, https://arxiv.org/abs/1902.03393, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain import checkpoint
from toolchain.distillation.teachers.config import Assistant
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.teachers.registry import require_classes, teacher
from toolchain.distillation.teachers.teacher import Teacher

if TYPE_CHECKING:
    from toolchain.student import Student


@teacher(
    "assistant",
    about="the student as an earlier stage of this chain left it",
    source="Mirzadeh et al. 2020",
)
def build(config: Assistant, student: Student, where: str) -> Teacher:
    """The network of that stage, frozen.

    Raises:
        ConfigError: The chain has no such earlier stage.
    """
    network, spec = checkpoint.load(student.earlier(config.stage, config.back, where))
    require_classes(len(spec.classes), student, where, "name another stage")
    return FrozenTeacher(network, student.precision)
