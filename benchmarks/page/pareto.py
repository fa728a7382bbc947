"""Accuracy against what it costs: latency, energy, size; and which networks no other one beats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import HEIGHT, NARROW, WIDE, Figure, Key, key
from benchmarks.page.charts.plot import Axis, Plot, Series
from benchmarks.page.charts.style import TEACHER, Style

SIZE = "size"
_ALL_NAMED = 12  # of more networks only those on the front are named in the drawing


@dataclass(frozen=True)
class Candidate:
    """One network: ``costs`` by (kind, condition), of which only equal conditions may be compared.

    Kinds are ``latency`` in ms, ``energy`` in J and ``size`` in bytes.  ``group`` names what several
    points are measurements of, such as one teacher; a group is labelled once.
    """

    name: str
    group: str
    style: Style
    accuracy: float | None
    costs: Mapping[tuple[str, str], float] = field(default_factory=dict)


_KINDS = {
    "latency": ("median latency", numbers.milliseconds),
    "energy": ("energy per inference", lambda value: numbers.scaled(value, "J")),
    SIZE: ("size of the model file", lambda value: numbers.scaled(value, "B")),
}


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, accuracy) points that no other one beats in both, by rising cost.

    >>> front([(2, 90), (1, 80), (3, 85), (1, 79)])
    [(1, 80), (2, 90)]
    """
    best: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def pareto_figures(candidates: Sequence[Candidate], students: int = 1) -> list[Figure]:
    """A figure for each kind of cost and condition under which two networks or more were measured.

    ``students`` is how many of them, at least, must not be teachers.
    """
    conditions = sorted(
        {condition for one in candidates for condition in one.costs},
        key=lambda condition: (list(_KINDS).index(condition[0]), condition[1]),
    )
    figures = []
    for condition in conditions:
        shown = [one for one in candidates if condition in one.costs and one.accuracy is not None]
        if len(shown) > 1 and sum(one.style != TEACHER for one in shown) >= students:
            figures.append(_figure(condition, shown))
    return figures


def _figure(condition: tuple[str, str], shown: Sequence[Candidate]) -> Figure:
    kind, where = condition
    best = front([(one.costs[condition], one.accuracy or 0.0) for one in shown])
    crowded = len(shown) > _ALL_NAMED
    label, show = _KINDS[kind]
    series, legend, named = [], [], set()
    for one in shown:
        cost, accuracy = one.costs[condition], one.accuracy or 0.0
        first = one.group not in named
        named.add(one.group)
        tip = f"{one.name}: {numbers.percent(accuracy)} at {show(cost)}"
        series.append(
            Series(one.name, [(cost, accuracy)], one.style, "scatter", [tip],
                   [one.group if first and (not crowded or (cost, accuracy) in best) else ""])
        )  # fmt: skip
        if first:
            legend.append(key(one.group, one.style, line=False, dot=True))
    on_front = [one.group for one in shown if (one.costs[condition], one.accuracy) in best]
    winners = list(dict.fromkeys(on_front))
    plot = Plot(
        f"Accuracy against {kind}",
        "; ".join(series_tip.tips[0] for series_tip in series) + f". Best: {', '.join(winners)}.",
        Axis(label, log=True, show=lambda value: _plain(show(value))),
        Axis("top-1, %", within=(0, 100)),
        series,
        staircase=best,
    )
    caption = f"On the front: {', '.join(winners)}. Nothing here is both more accurate and cheaper."
    if where:
        caption += f" Measured on {where}."
    return Figure(
        f"Accuracy against {kind}",
        plot.svg(WIDE, HEIGHT),
        plot.svg(NARROW, HEIGHT),
        caption,
        [*legend, _FRONT] if len(best) > 1 else legend,
    )


def _plain(text: str) -> str:
    """A tick without the zeros that its digits end with: 1.00 MB is 1 MB."""
    number, gap, unit = text.partition(numbers.THIN)
    return (number.rstrip("0").rstrip(".") if "." in number else number) + gap + unit


_FRONT: Key = key("front", Style("frontier", "", "circle"))
