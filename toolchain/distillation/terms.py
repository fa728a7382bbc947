"""Supervision terms, and the objective that adds them up into a student's loss.

    L = s_task CE(z, y) + sum_i s_i loss_i(adapt_i(student at spot_i), teacher_i at spot_i)

with the strengths s set by a controller. Axes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.config import Distil
from toolchain.distillation.controllers import CONTROLLERS, Controller
from toolchain.distillation.losses import LOSSES
from toolchain.distillation.spots import LOGITS, adapter, capture, shapes
from toolchain.distillation.teachers import Teacher
from toolchain.training.objective import Batch, Update, trainable

TASK = "task"


@dataclass(frozen=True)
class Term:
    """One distillation loss between a student and a teacher.

    Attributes:
        name: Key of its strength and of its value in the log.
        loss: ``loss(student, teacher)``, and ``labels_B=`` too if ``needs_labels``.
        teacher: Whose features.
        spot: Where the teacher is looked at.
        student_spot: Where the student is.
        adapter: Brings the student's features to the teacher's shape, or None.
        needs_labels: Whether the loss looks at the labels.
    """

    name: str
    loss: Callable[..., Tensor]
    teacher: Teacher
    spot: str = LOGITS
    student_spot: str = LOGITS
    adapter: nn.Module | None = None
    needs_labels: bool = False

    def value(self, student: Tensor, teacher: Tensor, labels_B: Tensor) -> Tensor:
        """The loss between two features, before its strength."""
        adapted = student if self.adapter is None else self.adapter(student)
        more = {"labels_B": labels_B} if self.needs_labels else {}
        return self.loss(adapted, teacher, **more)


class DistillationObjective:
    """Trains a student on the labels and on what teachers say.

    Args:
        network: The student; its parameters that want a gradient are trained, with the adapters'.
        terms: Names differ from each other and from ``task``; without any this is plain training.
        controller: Gives the strength of ``task`` and of each term.
        label_smoothing: Of the cross-entropy.
        parameters: What is trained of the student; default all that want a gradient.
        scales: Quantizer scales among them.
        guard: As in ``Update``.
        after: As in ``Update``.
        status: Numbers of the student worth watching, e.g. its sparsity.

    Raises:
        ConfigError: Two terms have the same name.
    """

    def __init__(
        self,
        network: nn.Module,
        terms: Sequence[Term],
        controller: Controller,
        *,
        label_smoothing: float = 0.0,
        parameters: Sequence[nn.Parameter] | None = None,
        scales: Sequence[nn.Parameter] = (),
        guard: Callable[[], AbstractContextManager[object]] | None = None,
        after: Callable[[], None] | None = None,
        status: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        names = [TASK, *(term.name for term in terms)]
        if len(set(names)) < len(names):
            raise ConfigError(f"distil.losses: terms {names}; their names must differ; rename one")
        self._network, self._terms, self._controller = network, tuple(terms), controller
        self._label_smoothing = label_smoothing
        self._status = status
        self._strengths: Mapping[str, float] = {}
        self._last: dict[str, float | Tensor] = {}
        adapters = {term.name: term.adapter for term in terms if term.adapter is not None}
        # Names may hold dots, module names may not.
        self._adapters = nn.ModuleList(adapters.values())
        trained = trainable(network) if parameters is None else list(parameters)
        self._update = Update(
            "student",
            [*trained, *self._adapters.parameters()],
            self.loss,
            scales=scales,
            guard=guard,
            after=after,
        )

    @property
    def updates(self) -> Sequence[Update]:
        """One: the student and its adapters."""
        return (self._update,)

    @property
    def strengths(self) -> Mapping[str, float]:
        """Of the current step."""
        return self._strengths

    def begin_step(self, step: int, total_steps: int) -> None:
        """Ask the controller for this step's strengths."""
        self._strengths = self._controller.strengths(step, total_steps, self._last)

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """The weighted sum, and each term with its strength for the log."""
        active = [term for term in self._terms if self._strengths[term.name] != 0.0]
        spots = {term.student_spot for term in active} | {LOGITS}
        with capture(self._network, sorted(spots)) as student:
            self._network(batch.images_BCHW)
        teacher = _observe(active, batch.images_BCHW)
        logits_BC = student[LOGITS].float()
        terms = {
            TASK: F.cross_entropy(logits_BC, batch.labels_B, label_smoothing=self._label_smoothing)
        }
        for term in active:
            signal = teacher[id(term.teacher)][term.spot]
            terms[term.name] = term.value(student[term.student_spot], signal, batch.labels_B)
        total = sum(
            (self._strengths[name] * value for name, value in terms.items()),
            start=logits_BC.new_zeros(()),
        )
        self._last = {name: value.detach() for name, value in terms.items()}
        strengths = {f"strength.{name}": value for name, value in self._strengths.items()}
        return total, {**self._last, **strengths}

    def state_dict(self) -> dict[str, Any]:
        """Adapters, the controller, and what it will be told next."""
        return {
            "adapters": self._adapters.state_dict(),
            "controller": self._controller.state_dict(),
            "last": dict(self._last),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._adapters.load_state_dict(state["adapters"])
        self._controller.load_state_dict(state["controller"])
        self._last = state["last"]

    def status(self) -> dict[str, float]:
        """The student's numbers."""
        return {} if self._status is None else self._status()


def recovery_objective(
    network: nn.Module,
    teacher: Teacher | None,
    config: Distil,
    images_BCHW: Tensor,
    *,
    controller: Controller | None = None,
    **options: Any,
) -> DistillationObjective:
    """The objective that a recipe asks for: labels, and one teacher's terms.

    Args:
        network: The student, on its device.
        teacher: Whose signal; None leaves the labels, at strength 1.
        config: Terms, strengths and controller.
        images_BCHW: A batch on the device, for the shapes at the spots; one image is enough.
        controller: Instead of the configured one.
        **options: Further arguments of ``DistillationObjective``.

    Raises:
        ConfigError: An unknown loss, option, spot or controller; shapes that no adapter joins.
    """
    if teacher is None:
        return DistillationObjective(
            network, (), CONTROLLERS.look_up("fixed")({TASK: 1.0}), **options
        )
    terms = build_terms(network, teacher, config, images_BCHW)
    strengths = {TASK: config.task_strength}
    for term, loss in zip(terms, config.losses, strict=True):
        strengths[term.name] = loss.strength
    if controller is None:
        build = CONTROLLERS.look_up(config.controller)
        try:
            controller = build(strengths, **config.controller_options)
        except TypeError as error:
            raise ConfigError(
                f"distil.controller_options: {config.controller!r} does not take "
                f"{config.controller_options}: {error}; see its arguments"
            ) from error
    return DistillationObjective(network, terms, controller, **options)


def build_terms(
    network: nn.Module, teacher: Teacher, config: Distil, images_BCHW: Tensor
) -> tuple[Term, ...]:
    """The configured terms, named after their loss and, where that is not the logits, their spot.

    Raises:
        ConfigError: As ``recovery_objective``.
    """
    entries = [LOSSES.look_up(loss.loss) for loss in config.losses]
    student_spots = [loss.student_spot or loss.spot for loss in config.losses]
    student = shapes(network, student_spots, images_BCHW)
    observed = teacher.observe(images_BCHW, [loss.spot for loss in config.losses])
    terms = []
    for entry, loss, spot in zip(entries, config.losses, student_spots, strict=True):
        softened = {} if loss.temperature is None else {"temperature": loss.temperature}
        function = entry.bind(**softened, **loss.options)
        joined = adapter(student[spot], observed[loss.spot].shape, entry.match, spot)
        terms.append(
            Term(
                name=entry.name if loss.spot == LOGITS else f"{entry.name}@{loss.spot}",
                loss=function,
                teacher=teacher,
                spot=loss.spot,
                student_spot=spot,
                adapter=None if joined is None else joined.to(images_BCHW.device),
                needs_labels=entry.needs_labels,
            )
        )
    return tuple(terms)


def _observe(terms: Sequence[Term], images_BCHW: Tensor) -> dict[int, dict[str, Tensor]]:
    """Each teacher's features at all its spots, from one pass of each."""
    teachers = {id(term.teacher): term.teacher for term in terms}
    return {
        key: teacher.observe(
            images_BCHW, sorted({term.spot for term in terms if id(term.teacher) == key})
        )
        for key, teacher in teachers.items()
    }
