"""Another trained network as a teacher, e.g. of another family or a stronger one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.distillation.teachers.config import AnotherNetwork
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.teachers.registry import require_classes, teacher
from toolchain.distillation.teachers.teacher import Teacher

if TYPE_CHECKING:
    from toolchain.student import Student


@teacher("network", about="another network, built-in or a file of your own, with its checkpoint")
def build(config: AnotherNetwork, student: Student, where: str) -> Teacher:
    """The network with its weights, frozen.

    Raises:
        ConfigError: It cannot be built, or has other classes than the student.
        CheckpointError: The weights do not fit.
        DataError: It does not take the data's images.
    """
    from toolchain.starting import build_network, logits_width

    network = build_network(config, where, student.ctx.seed)
    given = logits_width(network, student.spec.input_shape, where)
    require_classes(given, student, where, "change its args, or name another checkpoint")
    return FrozenTeacher(network, student.precision)
