"""What a finished training stage spent, and what its controller did, from the log that it left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from toolchain.runs.artifacts import Artifact

# Of a dean: at every step the share of its strengths that were the recipe's for want of evidence.
FALLBACK = "dean.fallback"
# Of a trail, what tells a reader how a controller decided; the rest is for the log alone.
_TELLING = (
    "strength.",
    "distilled.",
    "distillability.",
    "temperature",
    FALLBACK,
    "dean.judged",
    "dean.moved",
)
# What a dean may come to the end of a training without: the second is why, if it had too few probes.
MOVED, JUDGED = "moved", "judged"


class Course(NamedTuple):
    """One number of a controller over a training.

    Attributes:
        first: Mean over the first tenth of the steps that have it.
        last: Mean over the last tenth.
        mean: Over all of them.
    """

    first: float
    last: float
    mean: float


@dataclass(frozen=True)
class Trained:
    """What a stage that trains spent.

    Attributes:
        stage: Its name.
        steps: Optimizer steps of the student.
        batch_size: Images of a step.
        images_per_s: Of its steps, validation not counted; 0 where nobody wrote it down.
        trail: What its controller set, by name; empty where the recipe says it all.
    """

    stage: str
    steps: int
    batch_size: int
    images_per_s: float
    trail: Mapping[str, Course]


def trained(artifact: Artifact) -> Trained | None:
    """What the stage that made the artifact spent; None for one that did not train."""
    logs = sorted(artifact.root.glob("*.metrics.jsonl"))
    rows = [row for log in logs for row in _rows(log)]
    epochs = [row for row in rows if row.get("kind") == "epoch"]
    if not epochs:
        return None
    config: Mapping[str, Any] = record_of(artifact)["config"]
    last = epochs[-1]
    return Trained(
        artifact.stage,
        int(last["step"]),
        int(config.get("batch_size", 0)),
        float(last.get("images_per_s") or 0.0),
        _trail(row for row in rows if row.get("kind") == "trail"),
    )


def never(trail: Mapping[str, Course]) -> tuple[str, ...]:
    """What a dean never did in a training: ``moved`` a strength from the recipe's, or even was ``judged``.

    Nothing is said of one that moved a strength, nor of other controllers.
    """
    left_out = tuple(
        what
        for what in (MOVED, JUDGED)
        if (course := trail.get(f"dean.{what}")) is not None and course.mean == 0
    )
    return left_out if MOVED in left_out else ()


def why_unmoved(left_out: Iterable[str]) -> tuple[str, str]:
    """Why a dean moved no strength, and what to do, of one that ``never`` says that of."""
    if JUDGED in left_out:
        return "too few probes to judge it", "shorten probe_every or train longer"
    return "no evidence that moving one helps", "raise probe_size or held_out"


def trail_of(log: Path) -> dict[str, Course]:
    """What the controller of a training set, from its log; empty where the recipe says it all."""
    return _trail(row for row in _rows(log) if row.get("kind") == "trail")


def record_of(artifact: Artifact) -> dict[str, Any]:
    """Its ``artifact.json``."""
    record: dict[str, Any] = json.loads((artifact.root / "artifact.json").read_text())
    return record


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _trail(rows: Iterable[Mapping[str, Any]]) -> dict[str, Course]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(_TELLING) and value is not None:
                found.setdefault(name, []).append(float(value))
    return {name: _course(values) for name, values in found.items()}


def _course(values: Sequence[float]) -> Course:
    tenth = max(1, len(values) // 10)
    parts = (values[:tenth], values[-tenth:], values)
    return Course(*(sum(part) / len(part) for part in parts))
