"""Where SAKD decides: the terms' spots, paired between student and teacher, the logits last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import nn

from deploy.errors import ConfigError
from toolchain.distillation.building import both_spots
from toolchain.distillation.config import Distil, DistilLoss
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.spots import LOGITS
from toolchain.distillation.teachers.config import PRETRAINED, InNetwork, Pretrained
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.distillation.terms import Term, spots_of

WHERE = "distil.controller (spot-adaptive)"


class Sliceable(Teacher, Protocol):
    """A teacher that is one network, and so can be run in pieces."""

    network: nn.Module


@dataclass(frozen=True)
class Places:
    """The decisions of a batch: one column for each spot, and the last for the logits.

    Attributes:
        student: The student's inner spots, in order of execution.
        teacher: The teacher's, one for each.
        column: Of each term, by its name.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    column: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """What people call the columns."""
        return (*self.student, LOGITS)


def require_routes(distil: Distil) -> None:
    """Refuse losses through whose spots no sample could be sent.

    A teacher inside the student is no route: its losses see every sample.

    Raises:
        ConfigError: Losses of several teachers or of none, no loss inside both networks, or an exit there.
    """
    named = {PRETRAINED: Pretrained(), **distil.teachers}
    routed = [loss for loss in distil.losses if not isinstance(named[loss.teacher], InNetwork)]
    kinds = {named[loss.teacher].model_dump_json(): loss.teacher for loss in routed}
    if len(kinds) > 1:
        raise _teachers(len(kinds), f" ({', '.join(kinds.values())})")
    exits = [loss for loss in routed if LOSSES.look_up(loss.loss).match == "exit"]
    for loss in exits:
        ours = both_spots(loss, LOSSES.look_up(loss.loss))[1]
        if ours != LOGITS:
            raise _crosses_over(f"{loss.loss} at {ours}", str(ours), LOGITS)
    inner = [loss for loss in routed if loss not in exits and LOGITS not in _named(loss)]
    if not inner:
        given = ", ".join(f"{loss.loss} at {loss.spot}" for loss in distil.losses) or "no loss"
        aside = "" if len(routed) == len(distil.losses) else " of a teacher outside the student"
        raise ConfigError(
            f"distil.losses: {given} given, and spot-adaptive decides at spots inside both networks; "
            f"accepted is a loss{aside} there as well; add one at a spot like layer3 or penultimate"
        )


def decision_places(
    terms: Sequence[Term], student: Sequence[str], teacher: Sequence[str]
) -> Places:
    """Where these terms are decided; one that looks at two layers, where the later of them is.

    Args:
        terms: All of them.
        student: The terms' spots in the student, in order of execution.
        teacher: Likewise in the teacher.

    Raises:
        ConfigError: The spots do not cut both networks into as many pieces in the same order.
    """
    pairs = {term.name: _pair(term, student, teacher) for term in terms}
    inner = sorted(
        {pair for pair in pairs.values() if LOGITS not in pair},
        key=lambda pair: student.index(pair[0]),
    )
    if not inner:
        raise ConfigError(
            f"{WHERE}: the only spot of a teacher outside the student is 'logits'; a decision needs one "
            "inside both networks as well; add a loss at a spot like layer3 or penultimate"
        )
    order = [teacher.index(theirs) for _, theirs in inner]
    if len({ours for ours, _ in inner}) < len(inner) or order != sorted(set(order)):
        listed = ", ".join(f"{ours} with {theirs}" for ours, theirs in inner)
        raise ConfigError(
            f"{WHERE}: the student's spots and the teacher's are paired as {listed}; accepted is one "
            "partner each, in the same order in both networks; change spot or student_spot"
        )
    columns = {pair: column for column, pair in enumerate([*inner, (LOGITS, LOGITS)])}
    return Places(
        tuple(ours for ours, _ in inner),
        tuple(theirs for _, theirs in inner),
        {name: columns[pair] for name, pair in pairs.items()},
    )


def routed_terms(terms: Sequence[Term], student: nn.Module) -> tuple[tuple[Term, ...], Sliceable]:
    """The terms that are decided, and their teacher, which can be run in pieces.

    Raises:
        ConfigError: No teacher, or several, are networks of their own.
    """
    routed = tuple(t for t in terms if getattr(t.teacher, "network", student) is not student)
    teachers = list({id(term.teacher): term.teacher for term in routed}.values())
    if len(teachers) != 1:
        raise _teachers(len(teachers))
    return routed, cast(Sliceable, teachers[0])


def _pair(term: Term, student: Sequence[str], teacher: Sequence[str]) -> tuple[str, str]:
    ours = max(spots_of(term.student_spot), key=student.index)
    theirs = max(spots_of(term.spot), key=teacher.index)
    if (ours == LOGITS) != (theirs == LOGITS):
        raise _crosses_over(repr(term.name), ours, theirs)
    return ours, theirs


def _named(loss: DistilLoss) -> list[str]:
    """The spots that a loss names in both networks."""
    both = both_spots(loss, LOSSES.look_up(loss.loss))
    return [one for spot in both for one in spots_of(spot)]


def _teachers(count: int, names: str = "") -> ConfigError:
    return ConfigError(
        f"{WHERE}: the losses have {count} teachers outside the student{names}; accepted is exactly one, "
        "because a sample is routed through one; take the losses of one teacher, e.g. pretrained"
    )


def _crosses_over(name: str, ours: str, theirs: str) -> ConfigError:
    return ConfigError(
        f"{WHERE}: {name} compares the student's {ours!r} with the teacher's {theirs!r}; a sample can only "
        "cross between two inner spots, or between logits; leave this loss out, or take another controller"
    )
