"""What was decided at every step of training, one figure for each family of numbers.

A family is what stands before the first dot of a name in the log: ``strength.at@layer1``. What has a
place in the network is coloured by its depth there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import NARROW, WIDE, Figure, Key, key
from benchmarks.page.charts.plot import Axis, Band, Plot, Series
from benchmarks.page.charts.style import DASHES, Style, depth_style, depth_swatch, series_style
from benchmarks.page.envelope import Envelope, Stretch
from benchmarks.page.reading import Log
from benchmarks.page.training_figures import Place, laid_out

STRENGTHS, DISTILLABILITY = "strength", "distillability"
FALLBACK, JUDGED, MOVED = "dean.fallback", "dean.judged", "dean.moved"
TASK, LOGITS = "task", "logits"
_MOST, _LEAST = 768, 16  # stretches of all series of a figure, and of each
_TIPS = 6  # of a series and stage
_APART = 30  # times between two highest values that no axis should share
_SEEN = 0.008  # of the axis: a thinner band is not drawn


@dataclass(frozen=True)
class Family:
    """How the numbers with one prefix are drawn.

    ``of`` says what they are of, which shares its colours: the spots of losses, or layers that are cut.
    ``ends`` fixes the axis where its ends mean something.
    """

    prefix: str
    title: str
    label: str
    of: str = "spots"
    ends: tuple[float, float] | None = None


FAMILIES = (
    Family(STRENGTHS, "Distillation strengths", "strength"),
    Family("sparsity_strength", "Sparsity strengths", "strength", "layers"),
    Family(DISTILLABILITY, "Distillability", "cosine of the gradients"),
    Family("distilled", "Share distilled at each spot", "share of the batch", "spots", (0.0, 1.0)),
    Family("temperature", "Temperature of distillation", "temperature", "temperatures"),
    Family("sparsity", "Sparsity of each layer", "fraction removed", "layers", (0.0, 1.0)),
)


def trail_figures(logs: Sequence[Log]) -> list[Figure]:
    """A figure for each family that the logs' trails hold, or several where values are far apart."""
    spots = _in_order([log for log in logs if log.trail])
    figures = []
    for family in FAMILIES:
        found: dict[str, None] = {}
        for log in logs:
            found.update(
                dict.fromkeys(name for name in log.trail if _family(name) == family.prefix)
            )
        groups = [list(found)] if family.ends else apart(_highest(list(found), logs))
        for names in groups if found else ():
            among = [log for log in logs if any(name in log.trail for name in names)]
            about = ""
            if len(groups) > 1:
                losses = dict.fromkeys(_rest(name).partition("@")[0] for name in by_depth(names))
                about = f": {', '.join(losses)}"
            figures.append(_figure(family, about, names, laid_out(among), spots[family.of]))
    return figures


def fallbacks(logs: Sequence[Log]) -> list[str]:
    """Where all of a dean's strengths became the recipe's again, in a sentence for each stage."""
    told = []
    for log in logs:
        changes = log.trail[FALLBACK].changes if FALLBACK in log.trail else []
        ends = [f" to {numbers.grouped(step - 1)}" for step, _ in changes[1:]]
        spans = [
            f"step {numbers.grouped(step)}{end}"
            for (step, value), end in zip(changes, [*ends, " on"])
            if value == 1 and step > 1  # at first it always is
        ]
        if spans:
            told.append(
                f"{log.stage}: nothing showed that moving a strength helps, and all of the dean's were the "
                f"recipe's from {', '.join(spans)}."
            )
    return told


def unmoved(logs: Sequence[Log]) -> list[str]:
    """Where a dean moved nothing, and why, in a sentence for each stage."""
    told = []
    for log in logs:
        idle, unjudged = (
            name in log.trail and not any(value for _, value in log.trail[name].changes)
            for name in (MOVED, JUDGED)
        )
        if idle:
            why = (
                "there were too few probes to judge it"
                if unjudged
                else "there was no evidence that moving one helps"
            )
            told.append(
                f"{log.stage}, the dean: it never moved a strength from the recipe's: {why}."
            )
    return told


def apart(highest: Mapping[str, float]) -> list[list[str]]:
    """Names in groups, so that within a group no highest value is lost beside another.

    >>> apart({"at": 1000.0, "kl": 0.9, "task": 0.1})
    [['kl', 'task'], ['at']]
    """
    groups: list[list[str]] = []
    lowest = 0.0
    for name in sorted(highest, key=lambda name: highest[name]):
        if not groups or (lowest > 0 and highest[name] > _APART * lowest):
            groups.append([])
            lowest = highest[name]
        lowest = lowest or highest[name]
        groups[-1].append(name)
    return [[name for name in highest if name in group] for group in groups]


def by_depth(names: Sequence[str]) -> list[str]:
    """The labels' own term first, then spots in their order, then what is distilled at the logits.

    >>> by_depth(["strength.kl", "strength.task", "strength.at@layer1", "strength.at@layer2"])
    ['strength.task', 'strength.at@layer1', 'strength.at@layer2', 'strength.kl']
    """
    return sorted(names, key=lambda name: {TASK: 0, LOGITS: 2}.get(_spot(name), 1))


def _figure(
    family: Family, about: str, names: Sequence[str], laid: Sequence[Place], spots: Sequence[str]
) -> Figure:
    names = by_depth(names)
    styles, legend = _styles(names, spots)
    shown = _short(names)
    axis = Axis(family.label, zero=True)
    if family.ends is not None:
        axis = Axis(family.label, low=family.ends[0], high=family.ends[1])
    ends = [
        f"{shown[name]} ends {place.log.stage} at {numbers.digits(place.log.trail[name].last[1], 3)}"
        for place in laid
        for name in names
        if name in place.log.trail
    ]
    ticks = [(place.end, numbers.grouped(place.steps)) for place in laid]

    def plot(stretches: int) -> Plot:
        most = max(_LEAST, stretches // len(names))
        return Plot(
            family.title + about,
            "; ".join(ends),
            Axis("steps of each stage", low=0, high=laid[-1].end, ticks=[(0.0, "0"), *ticks]),
            axis,
            [
                _series(name, shown[name] if len(names) > 1 else "", styles[name], laid, most)
                for name in names
            ],
            bands=[Band(place.start, place.end, place.log.stage) for place in laid],
        )

    wide, narrow = plot(_MOST), plot(_MOST // 2)
    return Figure(wide.title, wide.svg(WIDE, 300), narrow.svg(NARROW, 280), "", legend)


def _series(name: str, shown: str, style: Style, laid: Sequence[Place], most: int) -> Series:
    """The means of stretches through all stages, interrupted between them, with their extremes."""
    points: list[tuple[float, float | None]] = []
    tips: list[str] = []
    areas: list[list[tuple[float, float, float]]] = []
    exact = True
    for place in laid:
        if name not in place.log.trail:
            continue
        found = place.log.trail[name].stretches(most)
        exact = exact and all(one.size == 1 for one in found)
        stride = -(-len(found) // _TIPS)
        points += [(place.at(one.middle), one.mean) for one in found]
        tips += [
            "" if index % stride else _tip(shown or name, one) for index, one in enumerate(found)
        ]
        points.append((points[-1][0], None))
        tips.append("")
        areas.append([(place.at(one.middle), one.low, one.high) for one in found])
    span = _span([one for area in areas for one in area])
    wide = [area for area in areas if any(high - low > _SEEN * span for _, low, high in area)]
    held = exact and name.partition(".")[0] in (STRENGTHS, "sparsity_strength", "sparsity")
    kind = "step" if held else "line"
    return Series(name, points, style, kind, tips, end=shown, areas=wide)


def _tip(shown: str, one: Stretch) -> str:
    value = f"{shown} {numbers.digits(one.mean, 3)}"
    if one.size == 1:
        return f"{value} at step {numbers.grouped(one.start)}"
    return (
        f"{value} ({numbers.digits(one.low, 3)} to {numbers.digits(one.high, 3)}) in steps "
        f"{numbers.grouped(one.start)} to {numbers.grouped(one.end)}"
    )


def _span(area: Sequence[tuple[float, float, float]]) -> float:
    """From the lowest, or 0, to the highest."""
    return max((high for _, _, high in area), default=0.0) - min(
        (low for _, low, _ in area), default=0.0
    )


def _highest(names: Sequence[str], logs: Sequence[Log]) -> dict[str, float]:
    """The largest magnitude of each."""
    return {
        name: max(
            max(abs(one.low), abs(one.high))
            for log in logs
            for one in log.trail.get(name, Envelope()).stretches(1)
        )
        for name in names
    }


def _in_order(logs: Sequence[Log]) -> dict[str, list[str]]:
    """Every spot, and every layer that is cut, from first to last: the same colour in every figure."""
    order: dict[str, list[str]] = {}
    for family in FAMILIES:
        names = [name for log in logs for name in log.trail if _family(name) == family.prefix]
        order.setdefault(family.of, []).extend(names)
    return {
        of: [spot for spot in dict.fromkeys(map(_spot, by_depth(names))) if spot != TASK]
        for of, names in order.items()
    }


def _styles(names: Sequence[str], spots: Sequence[str]) -> tuple[dict[str, Style], list[Key]]:
    """Colour by depth and dashes by loss and teacher, where there is any depth; otherwise by number."""
    if len(set(map(_spot, names)) - {TASK}) < 2:
        styles = {name: series_style(index) for index, name in enumerate(names)}
        return styles, []
    kinds = list(dict.fromkeys(_kind(name) for name in names if _spot(name) != TASK))
    styles = {}
    for name in names:
        spot = _spot(name)
        if spot == TASK:
            styles[name] = Style("quiet", "5 3", "ring")
        else:
            dash = DASHES[kinds.index(_kind(name)) % len(DASHES)]
            styles[name] = depth_style(spots.index(spot), len(spots), dash)
    legend = [Key("first to last layer", depth_swatch())]
    if len(kinds) > 1:
        legend += [
            key(kind, Style("quiet", DASHES[index % len(DASHES)], "ring"))
            for index, kind in enumerate(kinds)
        ]
    return styles, legend


def _family(name: str) -> str:
    return name.partition(".")[0]


def _rest(name: str) -> str:
    return name.partition(".")[2] or name


def _of_terms(name: str) -> bool:
    return _family(name) in (STRENGTHS, DISTILLABILITY)


def _spot(name: str) -> str:
    """Where in the network: the logits for a loss that names no spot; of a layer, its name."""
    term = _rest(name).partition(":")[0]
    if "@" in term:
        return term.partition("@")[2]
    return LOGITS if _of_terms(name) and term != TASK else term


def _kind(name: str) -> str:
    """Which loss, and of which teacher, of those at one spot."""
    if not _of_terms(name):
        return ""
    term, colon, teacher = _rest(name).partition(":")
    loss = term.partition("@")[0]
    return f"{loss}, {teacher}" if colon else loss


def _short(names: Sequence[str]) -> dict[str, str]:
    """Each name without its family, and without its loss where all that have a spot share it."""
    losses = {_rest(name).partition("@")[0] for name in names if "@" in name}
    if len(losses) == 1:
        return {name: _rest(name).partition("@")[2] or _rest(name) for name in names}
    return {name: _rest(name) for name in names}
