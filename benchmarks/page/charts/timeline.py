"""Stages after one another as bars on one axis of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from benchmarks.page.charts.labels import text_width
from benchmarks.page.charts.scale import Scale, tick_label
from benchmarks.page.charts.svg import Svg, tag

_ROW, _TEXT_PX = 27, 12


@dataclass(frozen=True)
class Bar:
    """One stage: how long it took, and that in words; None where nobody knows."""

    name: str
    seconds: float
    shown: str


@dataclass(frozen=True)
class Timeline:
    """Bars, each beginning where the one before ended."""

    title: str
    description: str
    bars: Sequence[Bar]

    def svg(self, width: int) -> Svg:
        """The drawing, as high as its rows."""
        total_s = sum(bar.seconds for bar in self.bars)
        unit_s, unit = (
            (3600, "h") if total_s > 2 * 3600 else (60, "min") if total_s > 180 else (1, "s")
        )
        names = max((text_width(bar.name, _TEXT_PX) for bar in self.bars), default=0)
        left = min(names + 14, width * 0.4)
        scale = Scale(0, max(total_s / unit_s, 1e-9), left, width - 14)
        bottom = len(self.bars) * _ROW + 6
        parts: list[Svg] = [tag("title", self.title), tag("desc", self.description)]
        for value in scale.ticks(max(2, int((width - left) / 80))):
            at = scale(value)
            parts.append(tag("line", class_="grid", x1=at, y1=0, x2=at, y2=bottom))
            parts.append(
                tag("text", f"{tick_label(value)} {unit}", class_="tick", x=min(at, width - 18),
                    y=bottom + 15, text_anchor="middle")
            )  # fmt: skip
        start_s = 0.0
        for row, bar in enumerate(self.bars):
            top, begin = row * _ROW + 4, scale(start_s / unit_s)
            length = max(scale((start_s + bar.seconds) / unit_s) - begin, 2)
            parts.append(
                tag("text", bar.name, class_="name", x=left - 8, y=top + 14, text_anchor="end")
            )
            parts.append(
                tag("rect", class_="bar s0", x=begin, y=top, width=length, height=_ROW - 8, rx=2,
                    data_tip=f"{bar.name}: {bar.shown}")
            )  # fmt: skip
            parts += self._time(bar, begin, length, top + 14, width)
            start_s += bar.seconds
        return tag(
            "svg", *parts, role="img", viewBox=f"0 0 {width} {bottom + 22}", aria_label=self.title
        )

    @staticmethod
    def _time(bar: Bar, begin: float, length: float, y: float, width: int) -> list[Svg]:
        """The time inside its bar, after it, or before it: wherever there is room."""
        needed = text_width(bar.shown, _TEXT_PX) + 12
        if needed <= length:
            at, anchor, kind = begin + length / 2, "middle", "inside"
        elif begin + length + needed <= width:
            at, anchor, kind = begin + length + 6, "start", "name"
        else:
            at, anchor, kind = begin - 6, "end", "name"
        return [tag("text", bar.shown, class_=kind, x=at, y=y, text_anchor=anchor)]
