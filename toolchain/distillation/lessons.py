"""A lesson: one batch, as the student and its teachers see it; a school: what a controller may know.

Axes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.distillation.spots import LOGITS, capture
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.distillation.terms import FittedLoss, Term, feature_at, spots_of
from toolchain.training.evaluation import eval_mode
from toolchain.training.objective import Batch
from toolchain.training.precision import Precision, choose_precision

if TYPE_CHECKING:
    from toolchain.distillation.controllers.sparsifier import Sparsifier

TASK = "task"
# What a loss that is fitted to its teacher before training (FT's paraphraser) gets to see.
PREPARING_BATCHES, PREPARING_SIZE = 64, 128

# Gives the number-th batch of this size, not augmented and on the device; the numbers never end.
Draw = Callable[[int, int], Batch]


class Lesson:
    """One batch in front of one student; each network's pass is made once, when first asked for.

    Args:
        network: The student, in the mode that it is in.
        terms: Decide which features are kept.
        batch: On the device.
        label_smoothing: Of the cross-entropy.
        watched: Further spots of the student, and of each teacher by its identity.
    """

    def __init__(
        self,
        network: nn.Module,
        terms: Sequence[Term],
        batch: Batch,
        *,
        label_smoothing: float = 0.0,
        watched: Mapping[int | None, Sequence[str]] | None = None,
    ) -> None:
        self.batch, self.terms = batch, tuple(terms)
        self._network, self._label_smoothing = network, label_smoothing
        self._watched = watched or {}
        self._student: Mapping[str, Tensor] | None = None
        self._teachers: dict[int, Mapping[str, Tensor]] = {}

    def student(self) -> Mapping[str, Tensor]:
        """The student's features at every spot, and its logits, with their graph."""
        if self._student is None:
            spots = {one for term in self.terms for one in spots_of(term.student_spot)}
            with capture(
                self._network, sorted({*spots, LOGITS, *self._watched.get(None, ())})
            ) as found:
                self._network(self.batch.images_BCHW)
            self._student = found
        return self._student

    def teacher(self, teacher: Teacher) -> Mapping[str, Tensor]:
        """A teacher's features at all its terms' spots, without a graph."""
        key = id(teacher)
        if key not in self._teachers:
            spots = {
                one for term in self.terms if term.teacher is teacher for one in spots_of(term.spot)
            }
            wanted = sorted({*spots, *self._watched.get(key, ())})
            self._teachers[key] = teacher.observe(self.batch.images_BCHW, wanted)
        return self._teachers[key]

    def task(self) -> Tensor:
        """Cross-entropy with the labels."""
        logits_BC = self.student()[LOGITS]
        return F.cross_entropy(
            logits_BC if logits_BC.dtype.itemsize > 2 else logits_BC.float(),
            self.batch.labels_B,
            label_smoothing=self._label_smoothing,
        )

    def value(self, term: Term, samples_B: Tensor | None = None, **options: Any) -> Tensor:
        """A term's loss, before its strength; see `Term.value`."""
        return term.value(
            feature_at(self.student(), term.student_spot),
            feature_at(self.teacher(term.teacher), term.spot),
            self.batch,
            samples_B,
            **options,
        )


def _nobody(line: str) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class School:
    """What a controller may know of the training that it controls.

    Attributes:
        network: The student.
        precision: Of all passes; outside of an update's loss a controller enters its autocast itself.
        terms: In the recipe's order.
        base: The recipe's strength of ``task`` and of each term.
        label_smoothing: Of the cross-entropy.
        parameters: What is trained of the student.
        held_out: Batches of samples that the student is never fitted on; None where none were kept.
        probe: Batches of the training part, not augmented.
        sparsifier: Where strengths of sparsity go; None where only distillation is controlled.
        seed: For generators of its own.
        say: Prints a line for people.
    """

    network: nn.Module
    precision: Precision = field(default_factory=choose_precision)
    terms: tuple[Term, ...] = ()
    base: Mapping[str, float] = field(default_factory=lambda: {TASK: 1.0})
    label_smoothing: float = 0.0
    parameters: tuple[nn.Parameter, ...] = ()
    held_out: Draw | None = None
    probe: Draw | None = None
    sparsifier: Sparsifier | None = None
    seed: int = 0
    say: Callable[[str], None] = _nobody
    _watched: dict[int | None, list[str]] = field(default_factory=dict)
    _active: list[Term] = field(default_factory=list)
    _today: list[Lesson] = field(default_factory=list)

    def watch(self, spot: str, teacher: Teacher | None = None) -> None:
        """Keep the features at a further spot in every lesson: the student's, or a teacher's."""
        spots = self._watched.setdefault(None if teacher is None else id(teacher), [])
        if spot not in spots:
            spots.append(spot)

    def lesson(self, batch: Batch, terms: Sequence[Term] | None = None) -> Lesson:
        """A lesson of one's own, e.g. for a probe; of all terms, or of these."""
        return Lesson(
            self.network,
            self.terms if terms is None else terms,
            batch,
            label_smoothing=self.label_smoothing,
            watched=self._watched,
        )

    def prepare(self) -> None:
        """Fit what a loss learns of its teacher alone, unless a checkpoint has brought it along."""
        for term in self.terms:
            loss: Any = term.loss  # mypy takes no function for a module with methods of its own
            if not isinstance(loss, FittedLoss) or loss.ready:
                continue
            assert self.probe is not None and isinstance(term.spot, str)
            draw, spot, teacher = self.probe, term.spot, term.teacher
            with eval_mode(self.network):  # a teacher inside it learns nothing here
                loss.prepare(
                    teacher.observe(draw(number, PREPARING_SIZE).images_BCHW, [spot])[spot]
                    for number in range(PREPARING_BATCHES)
                )

    def convene(self, active: Sequence[Term]) -> None:
        """Start a step, in which these terms count; the last step's lesson and graph are let go."""
        self._today.clear()
        self._active[:] = active

    def shared(self, batch: Batch) -> Lesson:
        """The lesson of this step, whose passes a controller's updates and the student's share."""
        if not self._today or self._today[0].batch is not batch:
            self._today[:] = [self.lesson(batch, self._active)]
        return self._today[0]

    def with_terms(self, terms: Sequence[Term], base: Mapping[str, float]) -> School:
        """The same school, teaching these terms."""
        return replace(
            self, terms=tuple(terms), base=dict(base), _watched={}, _active=[], _today=[]
        )
