"""The objective that adds supervision terms up into a student's loss.

    L = s_task CE(z, y) + sum_i s_i loss_i(adapt_i(student at spot_i), teacher_i at spot_i)

with the strengths s, and which samples a term sees, set by a controller. Axes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.controllers.controller import Controller
from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.spots import LOGITS
from toolchain.distillation.teachers.teacher import MovingTeacher
from toolchain.training.objective import Batch, Update, trainable


class DistillationObjective:
    """Trains a student on the labels and on what teachers say.

    Args:
        school: The student, the terms and their strengths; its parameters are what is trained of the
            student, default all that want a gradient.
        controller: Gives the strength of ``task`` and of each term.
        scales: Quantizer scales among the parameters.
        guard: As in ``Update``.
        after: As in ``Update``.
        status: Numbers of the student worth watching, e.g. its sparsity.

    Raises:
        ConfigError: Two terms have the same name.
    """

    def __init__(
        self,
        school: School,
        controller: Controller,
        *,
        scales: Sequence[nn.Parameter] = (),
        guard: Callable[[], AbstractContextManager[object]] | None = None,
        after: Callable[[], None] | None = None,
        status: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        names = [TASK, *(term.name for term in school.terms)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(
                f"distil.losses: terms {names}, of which two are called {twice!r}; accepted is each loss "
                "once at a spot of a teacher; rename its teacher, take another spot, or leave one out"
            )
        self.school, self.controller = school, controller
        self._status = status
        self._strengths: Mapping[str, float] = {}
        self._last: dict[str, float | Tensor] = {}
        self._prepared = False
        # Names may hold dots, module names may not.
        self._modules = nn.ModuleList(part for term in school.terms for part in term.modules)
        teachers = {id(term.teacher): term.teacher for term in school.terms}.values()
        self._moving = [one for one in teachers if isinstance(one, MovingTeacher)]
        trained = school.parameters or trainable(school.network)
        self._update = Update(
            "student",
            [*trained, *self._modules.parameters(), *controller.parameters],
            self.loss,
            scales=scales,
            guard=guard,
            after=after,
        )

    @property
    def updates(self) -> Sequence[Update]:
        """The controller's, then the student with its adapters."""
        return (*self.controller.updates, self._update)

    @property
    def strengths(self) -> Mapping[str, float]:
        """Of the current step."""
        return self._strengths

    def begin_step(self, step: int, total_steps: int) -> None:
        """Ask the controller for this step's strengths; teachers that follow the student catch up."""
        if not self._prepared:  # not before: a resumed run has by now what it had prepared
            self.school.prepare()
            self._prepared = True
        for teacher in self._moving:
            teacher.follow(step)
        self._strengths = dict(self.controller.strengths(step, total_steps, self._last))
        self.school.convene([t for t in self.school.terms if self._strengths[t.name] != 0.0])

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """The weighted sum, and each term with its strength for the log."""
        lesson = self.school.shared(batch)
        guidance = self.controller.guide(lesson)
        terms = {TASK: lesson.task()}
        for term in lesson.terms:
            samples_B = guidance.samples.get(term.name)
            terms[term.name] = lesson.value(term, samples_B, **guidance.options.get(term.name, {}))
        total = sum(
            (self._strengths[name] * value for name, value in terms.items()),
            start=lesson.student()[LOGITS].new_zeros((), dtype=terms[TASK].dtype),
        )
        self._last = {name: value.detach() for name, value in terms.items()}
        strengths = {f"strength.{name}": value for name, value in self._strengths.items()}
        return total, {**self._last, **strengths}

    def trail(self) -> Mapping[str, float | Tensor]:
        """Every strength, and the controller's own numbers, wherever the recipe does not say it all."""
        if isinstance(self.controller, FixedStrength):
            return {}
        strengths = {f"strength.{name}": value for name, value in self._strengths.items()}
        return {**strengths, **self.controller.trail()}

    def state_dict(self) -> dict[str, Any]:
        """Adapters, losses and teachers that learn, the controller, and what it will be told next."""
        return {
            "modules": self._modules.state_dict(),
            "controller": self.controller.state_dict(),
            "teachers": [teacher.state_dict() for teacher in self._moving],
            "last": dict(self._last),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._modules.load_state_dict(state["modules"])
        self.controller.load_state_dict(state["controller"])
        for teacher, saved in zip(self._moving, state["teachers"], strict=True):
            teacher.load_state_dict(saved)
        device = next((p.device for p in self.school.network.parameters()), torch.device("cpu"))
        self._last = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in state["last"].items()
        }

    def status(self) -> dict[str, float]:
        """The student's numbers."""
        return {} if self._status is None else self._status()
