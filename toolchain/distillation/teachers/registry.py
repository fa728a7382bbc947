"""The kinds of teachers by name, each with how it is made, where it comes from and a line about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.errors import ConfigError
from toolchain.distillation.registry import Registry
from toolchain.distillation.teachers.teacher import Teacher

if TYPE_CHECKING:
    from toolchain.student import Student

# What makes a teacher of its settings, of the student, and of the place in the recipe for messages.
Build = Callable[[Any, "Student", str], Teacher]


@dataclass(frozen=True)
class TeacherEntry:
    """One kind of teacher.

    Attributes:
        name: As recipes say it.
        build: Makes one.
        about: One line for people.
        source: Authors and year, or empty.
    """

    name: str
    build: Build
    about: str
    source: str


TEACHERS: Registry[TeacherEntry] = Registry(
    "distil.teachers.kind",
    [
        f"toolchain.distillation.teachers.{module}"
        for module in ("pretrained", "network", "assistant", "ema", "in_network")
    ],
)


def teacher(name: str, *, about: str, source: str = "") -> Callable[[Build], Build]:
    """Register what makes teachers of a kind; a name that is taken is refused."""

    def register(build: Build) -> Build:
        TEACHERS.add(name, TeacherEntry(name, build, about, source))
        return build

    return register


def require_classes(given: int, student: Student, where: str, change: str) -> None:
    """Refuse a teacher whose logits mean something else than the student's.

    Raises:
        ConfigError: It tells another number of classes apart.
    """
    wanted = len(student.spec.classes)
    if given != wanted:
        raise ConfigError(
            f"{where}: the teacher has {given} classes and the student {wanted}; accepted are teachers "
            f"of the student's classes; {change}"
        )
