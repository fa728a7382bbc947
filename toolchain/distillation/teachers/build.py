"""From the teachers that a recipe names to teachers of one student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolchain.distillation.teachers.config import (
    PRETRAINED,
    InNetwork,
    Pretrained,
    TeacherConfig,
)
from toolchain.distillation.teachers.registry import TEACHERS
from toolchain.distillation.teachers.teacher import Teacher

if TYPE_CHECKING:
    from toolchain.student import Student


def build_teachers(
    configs: Mapping[str, TeacherConfig], student: Student, *, in_network: Teacher | None = None
) -> dict[str, Teacher]:
    """Every teacher by its name in the recipe, and the pretrained one, which is always there.

    Names with the same settings are one teacher: it is asked once, and its batch norms move once.

    Args:
        configs: Kind and settings, by name.
        student: Whom they teach.
        in_network: The teacher inside the student where a stage has made one already.

    Raises:
        ConfigError: As ``build_teacher``.
    """
    named = {PRETRAINED: Pretrained(), **configs}
    made: dict[str, Teacher] = {}
    if in_network is not None:
        made[InNetwork().model_dump_json()] = in_network
    settings = {name: config.model_dump_json() for name, config in named.items()}
    for name, config in named.items():
        if settings[name] not in made:
            made[settings[name]] = build_teacher(config, student, f"distil.teachers.{name}")
    return {name: made[settings[name]] for name in named}


def build_teacher(
    config: TeacherConfig, student: Student, where: str = "distil.teachers"
) -> Teacher:
    """One teacher for this student, which has to be on its device.

    Args:
        config: Its kind and settings.
        student: Whom it teaches.
        where: Its place in the recipe, for messages.

    Raises:
        ConfigError: Its network cannot be built, or has other classes than the student; there is no
            such earlier stage.
        CheckpointError: Its weights do not fit.
        StructureError: The student has no masked weights, and the teacher is made of them.
    """
    return TEACHERS.look_up(config.kind).build(config, student, where)
