"""How training went, stage after stage on one axis: losses, accuracy, sparsity, bits, strengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import NARROW, WIDE, Figure, key
from benchmarks.page.charts.plot import Axis, Band, Plot, Series
from benchmarks.page.charts.style import Style, series_style
from benchmarks.page.facts import words
from benchmarks.page.reading import Log

_GAP = 0.02  # of the axis, between two stages
_LEAST = 0.16  # of the axis, so that a short stage can be read
_MOST = 240  # points of a series
_NO_CURVE = ("kind", "step", "epoch")


@dataclass(frozen=True)
class Chart:
    """Which numbers of the logs go together."""

    title: str
    label: str
    takes: Callable[[str], bool]
    steps: bool = False


@dataclass(frozen=True)
class Place:
    """Where the ``steps`` of a stage lie on the axis: from ``start``, ``width`` long."""

    log: Log
    start: float
    width: float
    steps: float

    @property
    def end(self) -> float:
        return self.start + self.width

    def at(self, step: float) -> float:
        return self.start + self.width * min(step / self.steps, 1.0)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_strength(name: str) -> bool:
    return "strength" in name.split(".")


CHARTS = (
    Chart("Loss", "loss", lambda name: _last(name) in ("loss", "validation_loss")),
    Chart("Accuracy", "top-1, %", lambda name: "top1" in name),
    Chart("Sparsity", "fraction removed", lambda name: _last(name) == "sparsity", steps=True),
    Chart("Bits of the weights", "bits", lambda name: _last(name) == "bits", steps=True),
    Chart("Strengths of supervision", "strength", _is_strength),
    Chart("Learning rate", "learning rate", lambda name: _last(name) == "lr"),
    Chart("Speed of training", "images per second", lambda name: _last(name) == "images_per_s"),
)
TERMS = Chart("Terms of the loss", "loss", lambda name: True)
_WEIGHTED = (
    "Each term times its strength, which is what it adds to the loss, from means over the epoch so far; "
    "what has no strength in the log is shown as it is."
)


def training_figures(logs: Sequence[Log], teacher_validation: float | None = None) -> list[Figure]:
    """A figure for each group of numbers that the logs hold.

    ``teacher_validation`` is the teacher's top-1 on the part that training validates on, in percent.
    """
    laid = laid_out([log for log in logs if log.rows])
    trailed = any(name.startswith("strength.") for log in logs for name in log.trail)
    names: dict[str, None] = {}
    for place in laid:
        for row in place.log.rows:
            names.update(dict.fromkeys(name for name in row if name not in _NO_CURVE))
    groups: dict[str, list[str]] = {}
    for name in names:
        chart = next((chart for chart in CHARTS if chart.takes(name)), TERMS)
        if trailed and _is_strength(name):
            continue  # means over an epoch, of what the trail has for every step
        groups.setdefault(chart.title, []).append(name)
    figures = []
    for chart in (*CHARTS[:1], TERMS, *CHARTS[1:]):
        series = [
            one
            for index, name in enumerate(groups.get(chart.title, ()))
            for one in _series(
                name, laid, series_style(index), chart.steps,
                _contribution if chart is TERMS else numbers.known,
            )
        ]  # fmt: skip
        if chart.title == "Accuracy" and series and teacher_validation is not None:
            end = laid[-1].end
            series.append(
                Series("teacher", [(0, teacher_validation), (end, teacher_validation)],
                       Style("teacher", "5 3", "ring"))
            )  # fmt: skip
        if series:
            weighted = chart is TERMS and any(
                _strength_of(row, one.name) is not None
                for place in laid
                for row in place.log.rows
                for one in series
            )
            figures.append(_figure(chart, series, laid, _WEIGHTED if weighted else ""))
    return figures


def _contribution(row: Mapping[str, object], name: str) -> float | None:
    """What a term adds to the loss: its value times its strength, where the row has one."""
    value, strength = numbers.known(row, name), _strength_of(row, name)
    return value if value is None or strength is None else strength * value


def _strength_of(row: Mapping[str, object], name: str) -> float | None:
    """``strength.kl`` of ``kl``; of ``student.kl``, which has its update before it, likewise behind it."""
    update, dot, term = name.partition(".")
    own = numbers.known(row, f"strength.{name}")
    return numbers.known(row, f"{update}.strength.{term}") if own is None and dot else own


def laid_out(logs: Sequence[Log]) -> list[Place]:
    """Each stage's place on an axis of total length 1 but for the gaps."""
    steps = [_steps(log) for log in logs]
    least = min(_LEAST, 1 / len(logs)) if logs else 0.0
    widths = [max(count / sum(steps), least) for count in steps]
    start, laid = 0.0, []
    for log, count, width in zip(logs, steps, widths):
        laid.append(Place(log, start, width / sum(widths), count))
        start += width / sum(widths) + _GAP
    return laid


def _steps(log: Log) -> float:
    """How many the stage has, at least 1."""
    ends = [*map(_step, log.rows), *(found.last[0] for found in log.trail.values())]
    return max(ends, default=0.0) or 1.0


def _step(row: Mapping[str, object]) -> float:
    return numbers.known(row, "step") or 0.0


def _series(
    name: str,
    laid: Sequence[Place],
    style: Style,
    steps: bool,
    value: Callable[[Mapping[str, Any], str], float | None],
) -> list[Series]:
    """The numbers of one name through all stages, interrupted between them; ``value`` reads them of a row."""
    points: list[tuple[float, float | None]] = []
    for place in laid:
        found = [(place.at(_step(row)), value(row, name)) for row in place.log.rows if name in row]
        stride = max(1, -(-len(found) * max(1, len(laid)) // _MOST))
        kept = found[::stride]
        if found and kept[-1] != found[-1]:
            kept.append(found[-1])
        if kept:
            points += [*kept, (kept[-1][0], None)]
    known = [y for _, y in points if y is not None]
    if not known:
        return []
    tips = ["" if y is None else f"{words(name)} {numbers.digits(y, 4)}" for _, y in points]
    rare = len(known) <= 80
    return [
        Series(name, points, style, "step" if steps else "line", tips,
               dots=rare and name.startswith("validation"))
    ]  # fmt: skip


def _figure(
    chart: Chart, series: Sequence[Series], laid: Sequence[Place], caption: str = ""
) -> Figure:
    ends = [(place.end, numbers.grouped(place.steps)) for place in laid]
    last = {one.name: [y for _, y in one.points if y is not None][-1] for one in series}
    plot = Plot(
        chart.title,
        "; ".join(f"{name} ends at {numbers.digits(value, 4)}" for name, value in last.items()),
        Axis("steps of each stage", low=0, high=laid[-1].end, ticks=[(0.0, "0"), *ends]),
        Axis(
            chart.label,
            zero=chart.title not in ("Accuracy", "Learning rate"),
            within=(0, 100) if chart.title == "Accuracy" else (0, float("inf")),
        ),
        series,
        bands=[Band(place.start, place.end, place.log.stage) for place in laid],
    )
    return Figure(
        chart.title,
        plot.svg(WIDE, 250),
        plot.svg(NARROW, 240),
        caption,
        [key(words(one.name), one.style, dot=one.dots) for one in series],
    )
