"""A chart over two numeric axes: lines, steps, points and filled steps, with marked values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable, Optional, Sequence, Tuple

from benchmarks.page.charts.ends import column_width, end_names
from benchmarks.page.charts.labels import Box, place_labels, shortened, text_width
from benchmarks.page.charts.scale import Scale, limits, tick_labels, usable
from benchmarks.page.charts.style import Style, marker
from benchmarks.page.charts.svg import Svg, tag

Point = Tuple[float, Optional[float]]
TICK_PX, CHARACTER_PX = 12, 6.6
_MOST_TARGETS, _ROW_PX = 48, 15


@dataclass(frozen=True)
class Series:
    """One series: ``kind`` is ``line``, ``step`` (holds until the next point), ``area`` (a filled step)
    or ``scatter``.

    A y of None or NaN interrupts the line.  ``tips`` and ``labels`` go with the points, or are
    empty; a label is written beside its point, and ``end`` beside the drawing where the line ends.
    ``areas`` are runs of (x, low, high) that are shaded behind the line.
    """

    name: str
    points: Sequence[Point]
    style: Style
    kind: str = "line"
    tips: Sequence[str] = ()
    labels: Sequence[str] = ()
    dots: bool = False
    end: str = ""
    areas: Sequence[Sequence[tuple[float, float, float]]] = ()


@dataclass(frozen=True)
class Axis:
    """``ticks`` replaces the round values by (value, label) pairs; ``low`` and ``high`` fix the ends.

    ``show`` writes the values of ticks, such as with a unit.
    """

    label: str
    log: bool = False
    zero: bool = False
    within: tuple[float, float] = (-math.inf, math.inf)
    ticks: Sequence[tuple[float, str]] = ()
    low: float | None = None
    high: float | None = None
    show: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x`` with a short text on top; ``style`` gives its colour."""

    x: float
    text: str
    style: Style | None = None


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis under one name, such as a stage of training."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A chart as data; ``svg`` draws it.  ``title`` and ``description`` are for screen readers."""

    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    bands: Sequence[Band] = ()
    staircase: Sequence[tuple[float, float]] = field(default_factory=tuple)

    def svg(self, width: int, height: int) -> Svg:
        """The drawing in a viewBox of ``width`` x ``height``; says so where there is nothing to draw."""
        return _Drawing(self, width, height).svg()


class _Drawing:
    """A plot at one size."""

    def __init__(self, plot: Plot, width: int, height: int) -> None:
        self.plot, self.width, self.height = plot, width, height
        x_range = _range(plot.x, [x for one in plot.series for x, _ in one.points])
        heights = [y for one in plot.series for _, y in one.points]
        heights += [
            y for one in plot.series for area in one.areas for _, *ends in area for y in ends
        ]
        y_range = _range(plot.y, heights)
        bands = Scale(*x_range, 0, width * 0.85, plot.x.log)
        self.tall = any(  # names that do not fit into their bands take turns on two lines
            text_width(band.text, TICK_PX) + 6 > bands(band.end) - bands(band.start)
            for band in plot.bands
        )
        self.top = 8 + _ROW_PX * (bool(plot.marks or plot.bands) + self.tall)
        self.bottom = height - 40
        draft = Scale(*y_range, self.bottom, self.top, plot.y.log)
        self.y_ticks = _ticks(plot.y, draft, max(3, int(height / 48)))
        widest = max((len(label) for _, label in self.y_ticks), default=1)
        beside = column_width([one.end for one in plot.series if one.end])
        self.left, self.right = 26 + widest * CHARACTER_PX, width - (beside or 12)
        self.y = draft
        self.x = Scale(*x_range, self.left, self.right, plot.x.log)

    def svg(self) -> Svg:
        plot = self.plot
        drawable = any(self._drawn(one) for one in plot.series)
        parts = [tag("title", plot.title), tag("desc", plot.description)]
        if drawable:
            parts += [*self._bands(), *self._axes(), *self._staircase(), *self._marks()]
            for one in plot.series:
                parts += self._areas(one)
            for one in plot.series:
                parts += self._series(one)
            parts += [*self._labels(), *self._ends()]
        else:
            middle = tag(
                "text", "nothing to draw", class_="tick", x=self.width / 2, y=self.height / 2,
                text_anchor="middle",
            )  # fmt: skip
            parts.append(middle)
        return tag(
            "svg", *parts, role="img", viewBox=f"0 0 {self.width} {self.height}",
            aria_label=plot.title,
        )  # fmt: skip

    def _drawn(self, one: Series) -> list[tuple[float, float]]:
        return [(x, y) for x, y in one.points if y is not None and self._inside(x, y)]

    def _inside(self, x: float, y: float | None) -> bool:
        return self.x.holds(x) and self.y.holds(y)

    def _axes(self) -> list[Svg]:
        parts = []
        for value, label in self.y_ticks:
            at = self.y(value)
            parts.append(tag("line", class_="grid", x1=self.left, y1=at, x2=self.right, y2=at))
            parts.append(
                tag("text", label, class_="tick", x=self.left - 6, y=at + 4, text_anchor="end")
            )
        room = (self.right - self.left) / 52
        taken = -math.inf
        for value, label in _ticks(self.plot.x, self.x, max(2, int(room))):
            at, half = self.x(value), text_width(label, TICK_PX) / 2
            parts.append(
                tag("line", class_="grid", x1=at, y1=self.bottom, x2=at, y2=self.bottom + 4)
            )
            # The last label must not stick out of the drawing, nor one cover another.
            middle = min(max(at, half), self.width - half)
            if middle - half > taken:
                parts.append(
                    tag("text", label, class_="tick", x=middle, y=self.bottom + 17,
                        text_anchor="middle")
                )  # fmt: skip
                taken = middle + half + 3
        parts.append(
            tag("line", class_="axis", x1=self.left, y1=self.bottom, x2=self.right, y2=self.bottom)
        )
        middle = (self.left + self.right) / 2
        parts.append(
            tag("text", self.plot.x.label, class_="label", x=middle, y=self.height - 6,
                text_anchor="middle")
        )  # fmt: skip
        centre = (self.top + self.bottom) / 2
        parts.append(
            tag("text", self.plot.y.label, class_="label", text_anchor="middle",
                transform=f"translate(12 {centre:.1f}) rotate(-90)")
        )  # fmt: skip
        return parts

    def _bands(self) -> list[Svg]:
        parts = []
        for index, band in enumerate(self.plot.bands):
            start, end = self.x(band.start), self.x(band.end)
            parts.append(
                tag("rect", class_=f"band b{index % 2}", x=start, y=self.top, width=end - start,
                    height=self.bottom - self.top)
            )  # fmt: skip
            text = shortened(band.text, int((self.right - self.left) / TICK_PX))
            half = text_width(text, TICK_PX) / 2
            middle = min(max((start + end) / 2, self.left + half), self.right - half)
            row = index % 2 if self.tall else 0
            parts.append(
                tag("text", text, class_="tick", x=middle, y=self.top - 6 - row * _ROW_PX,
                    text_anchor="middle")
            )  # fmt: skip
        return parts

    def _marks(self) -> list[Svg]:
        parts: list[Svg] = []
        taken: list[Box] = []
        for mark in self.plot.marks:
            if not self.x.holds(mark.x):
                continue
            at, style = self.x(mark.x), mark.style.name if mark.style else ""
            dash = {"stroke_dasharray": mark.style.dash} if mark.style and mark.style.dash else {}
            parts.append(
                tag("line", class_=f"marked {style}", x1=at, y1=self.top, x2=at, y2=self.bottom,
                    **dash)
            )  # fmt: skip
            half = text_width(mark.text, TICK_PX) / 2
            middle = min(max(at, self.left + half), self.width - half)
            box = Box(middle - half - 2, 0, middle + half + 2, self.top)
            if not any(box.overlap(other) for other in taken):
                taken.append(box)
                parts.append(
                    tag("text", mark.text, class_=f"tick ink {style}", x=middle, y=self.top - 6,
                        text_anchor="middle")
                )  # fmt: skip
        return parts

    def _staircase(self) -> list[Svg]:
        """The Pareto front: the best y that is to be had up to each x."""
        corners = [(x, y) for x, y in self.plot.staircase if self._inside(x, y)]
        if not corners:
            return []
        path = [f"M{self.x(corners[0][0]):.1f},{self.bottom:.1f}"]
        outline: list[str] = []
        for x, y in corners:
            step = f"H{self.x(x):.1f} V{self.y(y):.1f}"
            path.append(step)
            outline.append(step if outline else f"M{self.x(x):.1f},{self.y(y):.1f}")
        path.append(f"H{self.right:.1f} V{self.bottom:.1f} Z")
        outline.append(f"H{self.right:.1f}")
        return [
            tag("path", class_="dominated", d=" ".join(path)),
            tag("path", class_="front", d=" ".join(outline)),
        ]

    def _areas(self, one: Series) -> list[Svg]:
        parts = []
        for area in one.areas:
            inside = [(x, low, high) for x, low, high in area if self._inside(x, low)]
            upper = [(x, high) for x, _, high in inside if self._inside(x, high)]
            outline = [*upper, *reversed([(x, low) for x, low, _ in inside])]
            d = " L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in outline)
            if outline:
                parts.append(tag("path", class_=f"spread {one.style.name}", d=f"M{d} Z"))
        return parts

    def _series(self, one: Series) -> list[Svg]:
        if one.kind == "scatter":
            return self._dots(one)
        runs: list[list[tuple[float, float]]] = [[]]
        for x, y in one.points:
            if y is not None and self._inside(x, y):
                runs[-1].append((self.x(x), self.y(y)))
            elif runs[-1]:
                runs.append([])
        parts: list[Svg] = []
        dash = {"stroke_dasharray": one.style.dash} if one.style.dash else {}
        for run in (run for run in runs if run):
            if one.kind == "area":
                outline = f"M{run[0][0]:.1f},{self.bottom:.1f} V{run[0][1]:.1f}{_steps(run)}"
                closed = f"{outline} V{self.bottom:.1f} Z"
                parts.append(tag("path", class_=f"fill {one.style.name}", d=closed))
                parts.append(tag("path", class_=f"line thin {one.style.name}", d=outline, **dash))
                continue
            start = f"M{run[0][0]:.1f},{run[0][1]:.1f}"
            lines = "".join(f" L{x:.1f},{y:.1f}" for x, y in run[1:])
            d = start + (_steps(run) if one.kind == "step" else lines)
            if len(run) == 1:
                parts.append(marker(one.style, *run[0], 2.5))
            else:
                parts.append(tag("path", class_=f"line {one.style.name}", d=d, **dash))
        if one.dots:
            parts += self._dots(one, 3)
        elif one.tips:
            parts += self._targets(one)
        return parts

    def _dots(self, one: Series, radius: float = 5.5) -> list[Svg]:
        tips = [*one.tips, *[""] * len(one.points)]
        return [
            marker(one.style, self.x(x), self.y(y), radius, tip)
            for (x, y), tip in zip(one.points, tips)
            if y is not None and self._inside(x, y)
        ]

    def _targets(self, one: Series) -> list[Svg]:
        """Invisible places that say their value when pointed at."""
        there = [
            (x, y, tip)
            for (x, y), tip in zip(one.points, one.tips)
            if tip and y is not None and self._inside(x, y)
        ]
        stride = max(1, -(-len(there) // _MOST_TARGETS))
        return [
            tag("circle", class_="target", cx=self.x(x), cy=self.y(y), r=7, data_tip=tip)
            for x, y, tip in there[::stride]
        ]

    def _labels(self) -> list[Svg]:
        found = [
            (self.x(x), self.y(y), label)
            for one in self.plot.series
            for (x, y), label in zip(one.points, one.labels)
            if label and y is not None and self._inside(x, y)
        ]
        dots = [
            (self.x(x), self.y(y))
            for one in self.plot.series
            if one.kind == "scatter"
            for x, y in self._drawn(one)
        ]
        lines = []
        corners = [(self.x(x), self.y(y)) for x, y in self.plot.staircase if self._inside(x, y)]
        ends = [*corners[1:], (self.right, self.top)]
        for (x, y), (next_x, next_y) in zip(corners, ends):
            lines.append(Box(x, y - 1, next_x, y + 1))
            lines.append(Box(next_x - 1, min(y, next_y), next_x + 1, max(y, next_y)))
        for one in self.plot.series if found else ():
            drawn = [] if one.kind == "scatter" else self._drawn(one)
            places = [(self.x(x), self.y(y)) for x, y in drawn]
            for (x, y), (next_x, next_y) in zip(places, places[1:]):
                lines.append(Box(x, min(y, next_y) - 1, next_x, max(y, next_y) + 1))
        area = Box(self.left + 2, self.top, self.right, self.bottom - 2)
        return [
            tag("text", placed.text, class_="name", x=placed.x, y=placed.y,
                text_anchor=placed.anchor)
            for placed in place_labels(found, dots, lines, area)
        ]  # fmt: skip

    def _ends(self) -> list[Svg]:
        ends = [
            (self.x(drawn[-1][0]), self.y(drawn[-1][1]), one.end, one.style)
            for one in self.plot.series
            for drawn in [self._drawn(one) if one.end else []]
            if drawn
        ]
        return end_names(ends, self.right, self.top + 4, self.bottom - 2)


def _range(axis: Axis, values: Sequence[float | None]) -> tuple[float, float]:
    shown = usable([*values, *[value for value, _ in axis.ticks]], log=axis.log)
    low, high = limits(shown, log=axis.log, zero=axis.zero, within=axis.within)
    low = axis.low if axis.low is not None else low
    high = axis.high if axis.high is not None else high
    return (low, high) if high > low else (low, low * 10 if axis.log else low + 1)


def _ticks(axis: Axis, scale: Scale, count: int) -> list[tuple[float, str]]:
    if axis.ticks:
        return [(value, label) for value, label in axis.ticks if scale.holds(value)]
    values = [value for value in scale.ticks(count) if scale.holds(value)]
    labels = [axis.show(value) for value in values] if axis.show else tick_labels(values)
    return list(zip(values, labels))


def _steps(run: Sequence[tuple[float, float]]) -> str:
    return "".join(f" H{x:.1f} V{y:.1f}" for x, y in run[1:])
