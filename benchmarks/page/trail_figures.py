"""What was decided at every step of training, one figure for each family of numbers.

A family is what stands before the first dot of a name in the log: ``strength.at@layer1``. What has a
place in the network is coloured by its depth there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import NARROW, WIDE, Figure, Key
from benchmarks.page.charts.plot import Axis, Band, Plot, Series
from benchmarks.page.charts.style import DASHES, Style, depth_style, depth_swatch, series_style
from benchmarks.page.envelope import Envelope
from benchmarks.page.reading import Log
from benchmarks.page.training_figures import Place, laid_out

STRENGTHS = "strength"
FALLBACK = "dean.fallback"
_MOST = 1500  # points of all series of a figure
_TIPS = 10  # of a series
_APART = 30  # times the lowest of the series' highest values; more needs a logarithmic axis


@dataclass(frozen=True)
class Family:
    """How the numbers with one prefix are drawn; ``ends`` fixes the axis where its ends mean something."""

    prefix: str
    title: str
    label: str
    kind: str = "line"
    ends: tuple[float, float] | None = None
    log: bool = False


FAMILIES = (
    Family(STRENGTHS, "Distillation strengths", "strength", "step", log=True),
    Family("sparsity_strength", "Sparsity strengths", "strength", "step", log=True),
    Family("distillability", "Distillability", "cosine of the gradients"),
    Family("distilled", "Share distilled at each spot", "share of the batch", ends=(0.0, 1.0)),
    Family("temperature", "Temperature of distillation", "temperature"),
    Family("sparsity", "Sparsity of each layer", "fraction removed", "step", ends=(0.0, 1.0)),
)


def trail_figures(logs: Sequence[Log]) -> list[Figure]:
    """A figure for each family that the logs' trails hold."""
    laid = laid_out([log for log in logs if log.trail])
    figures = []
    for family in FAMILIES:
        names: dict[str, None] = {}
        for place in laid:
            for name in place.log.trail:
                if name.partition(".")[0] == family.prefix:
                    names[name] = None
        if names:
            figures.append(_figure(family, list(names), laid))
    return figures


def fallbacks(logs: Sequence[Log]) -> list[str]:
    """Where a dean went back to the recipe's strengths, in a sentence for each stage."""
    told = []
    for log in logs:
        found = log.trail.get(FALLBACK, Envelope())
        spans = [
            f"step {numbers.grouped(step)}"
            + (
                f" to {numbers.grouped(found.changes[index + 1][0])}"
                if index + 1 < len(found.changes)
                else " on"
            )
            for index, (step, value) in enumerate(found.changes)
            if value
        ]
        if spans:
            told.append(
                f"{log.stage}: the dean's signal was too noisy, and the recipe's strengths stood in for "
                f"it from {', '.join(spans)}."
            )
    return told


def _figure(family: Family, names: Sequence[str], laid: Sequence[Place]) -> Figure:
    names = by_depth(names)
    styles, legend = _styles(names)
    shown = _short(names)
    most = max(40, _MOST // len(names))
    series, last = [], []
    for name in names:
        points: list[tuple[float, float | None]] = []
        tips: list[str] = []
        for place in laid:
            kept = place.log.trail[name].points(most) if name in place.log.trail else []
            stride = max(1, -(-len(kept) // _TIPS))
            points += [(place.at(step), value) for step, value in kept]
            tips += [
                "" if index % stride
                else f"{shown[name]} {numbers.digits(value, 3)} at step {numbers.grouped(step)}"
                for index, (step, value) in enumerate(kept)
            ]  # fmt: skip
            if kept:
                last.append((place, name, kept[-1][1]))
                points.append((points[-1][0], None))
                tips.append("")
        series.append(
            Series(
                name,
                points,
                styles[name],
                family.kind,
                tips,
                end=shown[name] if len(names) > 1 else "",
            )
        )
    ends = [(place.end, numbers.grouped(place.steps)) for place in laid]
    plot = Plot(
        family.title,
        "; ".join(
            f"{shown[name]} ends {place.log.stage} at {numbers.digits(value, 3)}"
            for place, name, value in last
        ),
        Axis("steps of each stage", low=0, high=laid[-1].end, ticks=[(0.0, "0"), *ends]),
        _axis(family, series),
        series,
        bands=[Band(place.start, place.end, place.log.stage) for place in laid],
    )
    return Figure(family.title, plot.svg(WIDE, 300), plot.svg(NARROW, 280), "", legend)


def _axis(family: Family, series: Sequence[Series]) -> Axis:
    """Logarithmic where strengths are orders of magnitude apart and none is below 0."""
    if family.ends is not None:
        return Axis(family.label, low=family.ends[0], high=family.ends[1])
    known = [[y for _, y in one.points if y is not None] for one in series]
    highest = [max(values) for values in known if values and max(values) > 0]
    positive = all(min(values) >= 0 for values in known if values)
    if family.log and positive and highest and max(highest) > _APART * min(highest):
        return Axis(family.label, log=True)
    return Axis(family.label, zero=True)


def by_depth(names: Sequence[str]) -> list[str]:
    """The labels' own term first, then spots in their order, then what is distilled at the logits.

    >>> by_depth(["strength.kl", "strength.task", "strength.at@layer1", "strength.at@layer2"])
    ['strength.task', 'strength.at@layer1', 'strength.at@layer2', 'strength.kl']
    """

    def rank(name: str) -> int:
        family, _, rest = name.partition(".")
        if rest == "task":
            return 0
        placed = "@" in rest or family not in (STRENGTHS, "distillability")
        return 1 if placed and rest != "logits" else 2

    return sorted(names, key=rank)


def _styles(names: Sequence[str]) -> tuple[dict[str, Style], list[Key]]:
    """Colour by depth and dashes by loss and teacher, where there is any depth; otherwise by number."""
    spots: dict[str, None] = {}
    for name in names:
        spots[_spot(name)] = None
    spots.pop("task", None)
    if len(spots) < 3:
        return {name: series_style(index) for index, name in enumerate(names)}, []
    order = list(spots)
    kinds = list(dict.fromkeys(_kind(name) for name in names if _spot(name) != "task"))
    styles = {}
    for name in names:
        if _spot(name) == "task":
            styles[name] = Style("quiet", "5 3", "ring")
        else:
            dash = DASHES[kinds.index(_kind(name)) % len(DASHES)]
            styles[name] = depth_style(order.index(_spot(name)), len(order), dash)
    return styles, [Key("first to last layer", depth_swatch())]


def _spot(name: str) -> str:
    """Where in the network: the logits for a loss that names no spot, the whole rest for a layer."""
    family, _, rest = name.partition(".")
    term = rest.partition(":")[0]
    if "@" in term:
        return term.partition("@")[2]
    return "logits" if family in (STRENGTHS, "distillability") and term != "task" else term


def _kind(name: str) -> str:
    """Which loss and teacher, of those at one spot."""
    family, _, rest = name.partition(".")
    if family not in (STRENGTHS, "distillability"):
        return ""
    term, _, teacher = rest.partition(":")
    loss, at, _ = term.partition("@")
    return f"{loss if at else ''}:{teacher}"


def _short(names: Sequence[str]) -> dict[str, str]:
    """Each name without its family, and without its loss where all that have a spot share it."""
    rests = {name: name.partition(".")[2] or name for name in names}
    losses = {rest.partition("@")[0] for rest in rests.values() if "@" in rest}
    if len(losses) == 1:
        rests = {name: rest.partition("@")[2] or rest for name, rest in rests.items()}
    return rests
