"""What is distilled, as the recipe says it: what, where, whose and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from toolchain.distillation.teachers.config import PRETRAINED, TeacherConfig

# Options of controllers that name files of earlier runs.
FILES = ("load", "log")


Where = Annotated[str, Field(min_length=1)]


class DistilLoss(BaseModel):
    """One distillation term, or one for each spot that a pattern names.

    Attributes:
        loss: Name of a registered loss, e.g. ``kl``.
        spot: Where the teacher is looked at: ``logits``, ``penultimate``, a module path, a pattern of
            paths such as ``layer*``, or two paths for a loss between layers.
        student_spot: Where the student is; default the same as ``spot``.
        teacher: Whose signal, by its name under ``teachers``; ``pretrained`` is the recipe's model.
        strength: Weight of the term, which a controller may change over time.
        temperature: Softening of the logits; None leaves the loss's default.
        options: Further keyword arguments of the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: str
    spot: Where | tuple[Where, Where] = "logits"
    student_spot: Where | tuple[Where, Where] | None = None
    teacher: str = PRETRAINED
    strength: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    options: dict[str, Any] = {}


class Distil(BaseModel):
    """Terms, and who sets their strengths.

    Attributes:
        losses: The terms.
        task_strength: Weight of the cross-entropy with the labels.
        teachers: Teachers besides the pretrained one, by name.
        controller: Name of a registered controller of strengths.
        controller_options: Its keyword arguments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    losses: tuple[DistilLoss, ...] = (DistilLoss(loss="kl", strength=0.9, temperature=4.0),)
    task_strength: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    teachers: dict[str, TeacherConfig] = {}
    controller: str = "fixed"
    controller_options: dict[str, Any] = {}

    @field_validator("controller_options")
    @classmethod
    def _files_are_paths(cls, options: dict[str, Any]) -> dict[str, Any]:
        """So that they are looked for beside the recipe, and a changed file is another stage."""
        return {
            name: Path(value) if name in FILES and isinstance(value, str) else value
            for name, value in options.items()
        }
