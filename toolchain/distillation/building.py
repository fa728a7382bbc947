"""From a recipe's ``distil`` to terms, a controller and the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.adapters import join
from toolchain.distillation.config import Distil, DistilLoss
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.exits import exit_branch
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.locating import has_penultimate
from toolchain.distillation.losses.entry import LOSSES, LossEntry
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.registry import unknown
from toolchain.distillation.spots import LOGITS, PENULTIMATE, match_spots, shapes
from toolchain.distillation.spots import spots_of as spots_in_order
from toolchain.distillation.teachers.config import PRETRAINED, InNetwork
from toolchain.distillation.teachers.teacher import Teacher
from toolchain.distillation.terms import Spot, Term, spots_of

# A name that no recipe gives.
_PQK = "(pqk)"


class _Place(NamedTuple):
    """One term to be: where the teacher and the student are looked at, and the place's name."""

    teacher: Spot
    student: Spot
    name: str


def recovery_objective(
    school: School,
    teachers: Mapping[str, Teacher] | None,
    config: Distil,
    images_BCHW: Tensor,
    *,
    samples: int = 0,
    further: Sequence[tuple[Term, float]] = (),
    **options: Any,
) -> DistillationObjective:
    """The objective that a recipe asks for.

    Args:
        school: The student, on its device, without terms yet.
        teachers: By the names that the recipe uses; None leaves the labels, at strength 1.
        config: Terms, strengths and controller.
        images_BCHW: A batch on the device, for the shapes at the spots; two images are enough.
        samples: Of the training part, for losses that keep something for each.
        further: Terms that the recipe does not list, with their strengths.
        **options: Further arguments of ``DistillationObjective``.

    Raises:
        ConfigError: An unknown loss, option, spot, teacher or controller; shapes that no adapter joins.
    """
    if teachers is None:
        fixed = CONTROLLERS.look_up("fixed")
        alone = school.with_terms((), {TASK: 1.0})
        return DistillationObjective(alone, fixed.make(alone, {}), **options)
    entry = CONTROLLERS.look_up(config.controller)
    entry.check(config.controller_options)
    with torch.random.fork_rng(devices=[]):  # adapters start alike whatever ran before
        torch.manual_seed(school.seed)
        built = [*further, *build_terms(school, teachers, config.losses, images_BCHW, samples)]
        base = {TASK: config.task_strength, **{term.name: strength for term, strength in built}}
        school = school.with_terms([term for term, _ in built], base)
        try:
            controller = entry.make(school, config.controller_options)
        except TypeError as error:
            raise ConfigError(
                f"distil.controller_options: {config.controller!r} does not take "
                f"{config.controller_options}: {error}; see its arguments"
            ) from error
    return DistillationObjective(school, controller, **options)


def check_names(config: Distil, *, in_network: bool = False) -> None:
    """Refuse what can be known to be wrong before there is a network: names, options and their types.

    Args:
        config: As the recipe says it.
        in_network: Whether the stage adds PQK's term of the in-network teacher, under the same controller.

    Raises:
        ConfigError: An unknown loss, teacher, controller or option; a value that an option does not take; one
            spot where a loss compares two, or two for one; a loss twice; losses that the controller cannot
            work with.
    """
    controller = CONTROLLERS.look_up(config.controller)
    controller.check(config.controller_options)
    own = config.teachers.get(PRETRAINED)
    if own is not None and own.kind != PRETRAINED:
        raise ConfigError(
            f"distil.teachers.{PRETRAINED}: kind {own.kind!r} given; accepted under this name is only the "
            "recipe's model; give the teacher another name"
        )
    for loss in config.losses:
        entry = LOSSES.look_up(loss.loss)
        _bound(entry, loss, samples=0)
        both_spots(loss, entry)
        if loss.teacher not in (known := {PRETRAINED: None, **config.teachers}):
            raise ConfigError(
                f"distil.losses ({loss.loss}).teacher: {unknown(loss.teacher, known)}"
            )
    terms = [_term_at(loss) for loss in config.losses]
    for name, where, whose in terms:
        if (times := terms.count((name, where, whose))) > 1:
            raise ConfigError(
                f"distil.losses: {name} at {where} of {whose} given {times} times; "
                "accepted is each loss once at a spot of a teacher; leave one out"
            )
    if controller.require_losses is not None:
        if in_network:
            own_term = DistilLoss(loss="kl", teacher=_PQK)
            config = config.model_copy(
                update={
                    "losses": (*config.losses, own_term),
                    "teachers": {**config.teachers, _PQK: InNetwork()},
                }
            )
        controller.require_losses(config)


def _term_at(loss: DistilLoss) -> tuple[str, Spot, str]:
    """What a term is called after: the loss, where the teacher is, or an exit starts, and the teacher."""
    entry = LOSSES.look_up(loss.loss)
    theirs, ours = both_spots(loss, entry)
    return loss.loss, ours if entry.match == "exit" else theirs, loss.teacher


def build_terms(
    school: School,
    teachers: Mapping[str, Teacher],
    losses: Sequence[DistilLoss],
    images_BCHW: Tensor,
    samples: int = 0,
) -> Iterator[tuple[Term, float]]:
    """The configured terms with their strengths, one for each place that a pattern names.

    A term is named after its loss, its spot where that is not the logits, and its teacher where that is
    not the pretrained one: ``at@layer2:assistant``.

    Raises:
        ConfigError: As ``recovery_objective``.
    """
    exits = _exits(school.network, losses, images_BCHW)
    for loss in losses:
        entry = LOSSES.look_up(loss.loss)
        if loss.teacher not in teachers:
            raise ConfigError(
                f"distil.losses ({loss.loss}).teacher: {unknown(loss.teacher, teachers)}"
            )
        teacher, bound = teachers[loss.teacher], _bound(entry, loss, samples)
        places = _places(school.network, teacher, loss, entry)
        student = shapes(school.network, _paths(p.student for p in places), images_BCHW)
        observed = teacher.observe(images_BCHW, _paths(p.teacher for p in places))
        whose = "" if loss.teacher == PRETRAINED else f":{loss.teacher}"
        for place in places:
            seen = {one: observed[one].shape for one in spots_of(place.teacher)}
            own = {one: student[one] for one in spots_of(place.student)}
            adapter: nn.Module | None
            function = bound
            try:
                if entry.match == "exit" and place.student != LOGITS:
                    adapter = _exit(school.network, teacher, own, images_BCHW, exits[loss.teacher])
                else:
                    adapter = _joined(entry, place, [*own.values()], [*seen.values()])
                if entry.build is not None:
                    function = bound(next(iter(own.values())), next(iter(seen.values())))
            except ConfigError as error:
                raise _with_shapes(error, own, seen) from None
            term = Term(
                name=f"{entry.name}{place.name}{whose}",
                loss=function,
                teacher=teacher,
                spot=place.teacher,
                student_spot=place.student,
                adapter=adapter,
                needs=entry.needs,
            )
            for module in term.modules:
                module.to(images_BCHW.device)
            yield term, loss.strength


def both_spots(loss: DistilLoss, entry: LossEntry) -> tuple[Spot, Spot]:
    """Where a loss looks at the teacher and at the student: one place each, or a pair each.

    Raises:
        ConfigError: One where the loss compares two, or the reverse; one in the teacher for an exit.
    """
    spots = loss.spot, loss.spot if loss.student_spot is None else loss.student_spot
    pairs = [not isinstance(spot, str) for spot in spots]
    if entry.match == "pair" and not all(pairs):
        raise ConfigError(
            f"distil.losses ({loss.loss}).spot: {loss.spot!r} given; accepted are two paths, because "
            "this loss compares layers with each other; e.g. [layer1, layer2]"
        )
    if entry.match != "pair" and any(pairs):
        raise ConfigError(
            f"distil.losses ({loss.loss}).spot: {loss.spot!r} given; accepted is one path or pattern; "
            "list the loss twice for two spots"
        )
    if entry.match == "exit" and LOGITS != loss.spot != spots[1]:
        raise ConfigError(
            f"distil.losses ({loss.loss}).spot: {loss.spot!r} given beside student_spot {spots[1]!r}; "
            "accepted is one of the two, as an exit is compared with the teacher's logits; leave spot out"
        )
    return spots


def _places(
    network: nn.Module, teacher: Teacher, loss: DistilLoss, entry: LossEntry
) -> list[_Place]:
    """Where a loss attaches: patterns are matched in both networks, in order of execution."""
    theirs, ours = both_spots(loss, entry)
    if not isinstance(theirs, str) or not isinstance(ours, str):
        return [_Place(theirs, ours, f"@{theirs[0]}>{theirs[1]}")]
    if entry.match == "exit":  # a branch ends in logits, whatever it starts from
        return [
            _Place(LOGITS, one, "" if one == LOGITS else f"@{one}")
            for one in _matched(network, ours)
        ]
    seen = getattr(teacher, "network", network)
    at_teacher, at_student = _matched(seen, theirs), _matched(network, ours)
    require_as_many(loss, at_teacher, at_student)
    return [
        _Place(one, other, "" if one == LOGITS else f"@{one}")
        for one, other in zip(at_teacher, at_student, strict=True)
    ]


def require_as_many(loss: DistilLoss, at_teacher: Sequence[str], at_student: Sequence[str]) -> None:
    """Refuse patterns of which one names more places than the other.

    Raises:
        ConfigError: Lists both.
    """
    if len(at_teacher) != len(at_student):
        ours = loss.spot if loss.student_spot is None else loss.student_spot
        raise ConfigError(
            f"distil.losses ({loss.loss}): spot {loss.spot!r} names {len(at_teacher)} places of the teacher "
            f"({', '.join(at_teacher)}) and {ours!r} {len(at_student)} of the student "
            f"({', '.join(at_student)}); accepted are as many of each; change spot or student_spot"
        )


def _matched(network: nn.Module, pattern: str) -> tuple[str, ...]:
    return (pattern,) if pattern in (LOGITS, PENULTIMATE) else match_spots(network, pattern)


def _joined(
    entry: LossEntry, place: _Place, own: Sequence[torch.Size], seen: Sequence[torch.Size]
) -> nn.Module | None:
    """What brings the student's features to what the loss compares."""
    if entry.match == "pair" and [*map(_channels, own)] != [*map(_channels, seen)]:
        raise ConfigError(
            f"distil.losses ({entry.name}): {place.student} gives {[*map(_axes, own)]} in the student and "
            f"{place.teacher} {[*map(_axes, seen)]} in the teacher; accepted are as many channels, "
            "because this loss has no adapter; choose other spots"
        )
    if entry.match == "classes" and not len(own[0]) == len(seen[0]) == 2:
        raise ConfigError(
            f"distil.losses ({entry.name}).spot: {place.student} gives {_axes(own[0])} in the student and "
            f"{_axes(seen[0])} in the teacher; accepted are vectors, because this loss compares classes; "
            "use logits, or a loss between features"
        )
    match = "shape" if entry.match in ("classes", "exit") else entry.match
    return join(own[0], seen[0], match, str(place.student))


def _with_shapes(
    error: ConfigError, own: Mapping[str, torch.Size], seen: Mapping[str, torch.Size]
) -> ConfigError:
    """The error with both features, where it speaks of one of them."""
    shapes = [str(_axes(shape)) for side in (own, seen) for shape in side.values()]
    if all(shape in str(error) for shape in shapes):
        return error
    ours, theirs = (
        ", ".join(f"{spot} gives {_axes(shape)}" for spot, shape in side.items())
        for side in (own, seen)
    )
    return ConfigError(f"{error} ({ours} in the student, {theirs} in the teacher)")


def _channels(shape: torch.Size) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]  # tokens have them last


def _axes(shape: torch.Size) -> tuple[int, ...]:
    return tuple(shape[1:])


def _exits(
    network: nn.Module, losses: Sequence[DistilLoss], images_BCHW: Tensor
) -> dict[str, list[str]]:
    """The student's spots with an exit, for each teacher, in the order of execution.

    Counted over all losses: listing spots one by one, e.g. for a gamma each, changes no branch.
    """
    found: dict[str, set[str]] = {}
    for loss in losses:
        entry = LOSSES.look_up(loss.loss)
        if entry.match == "exit":
            ours = both_spots(loss, entry)[1]
            assert isinstance(ours, str), "both_spots refuses pairs here"
            found.setdefault(loss.teacher, set()).update(_matched(network, ours))
    if not found:
        return {}
    order = spots_in_order(network, images_BCHW)
    return {name: [s for s in order if s in spots - {LOGITS}] for name, spots in found.items()}


def _exit(
    network: nn.Module,
    teacher: Teacher,
    own: Mapping[str, torch.Size],
    images_BCHW: Tensor,
    exits: Sequence[str],
) -> nn.Module:
    """As wide as the wider network is at its end; for tokens as the student (Hao et al. 2023, code).

    Where a network ends in no linear layer, the student is as wide as at its last exit, and the teacher does
    not count (ours).
    """
    ((spot, shape),) = own.items()
    stage, stages = exits.index(spot) + 1, len(exits)
    if has_penultimate(network):
        width = shapes(network, [PENULTIMATE], images_BCHW)[PENULTIMATE][-1]
    else:
        width = _channels(shapes(network, [exits[-1]], images_BCHW)[exits[-1]])
    asked = [LOGITS]
    if len(shape) == 4 and has_penultimate(getattr(teacher, "network", network)):
        asked.append(PENULTIMATE)
    theirs = teacher.observe(images_BCHW, asked)
    width = max([width, *(theirs[one].shape[-1] for one in asked[1:])])
    return exit_branch(shape, theirs[LOGITS].shape[1], stage=stage, stages=stages, width=width)


def _bound(entry: LossEntry, loss: DistilLoss, samples: int) -> Callable[..., Any]:
    """The loss with its options set: the function, or what makes the module of two shapes."""
    options = dict(loss.options)
    if loss.temperature is not None:
        if "temperature" in options:
            raise ConfigError(
                f"distil.losses ({loss.loss}): temperature {loss.temperature:g} given, and "
                f"{options['temperature']} among its options; accepted is one; leave out the latter"
            )
        options["temperature"] = loss.temperature
    if "samples" in entry.options:
        options.setdefault("samples", samples)
    bound = entry.bind(**options)
    if options.get("samples", samples) < samples:
        raise ConfigError(
            f"distil.losses ({loss.loss}).samples: {options['samples']} given, and the training part has "
            f"{samples}; accepted are as many or more, one place for each; leave it out"
        )
    return bound


def _paths(spots: Iterator[Spot]) -> list[str]:
    return sorted({one for spot in spots for one in spots_of(spot)})
