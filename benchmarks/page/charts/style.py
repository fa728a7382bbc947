"""How series are told apart: by colour, dashes and marker, so that colour alone carries nothing.

Colours are CSS classes ``s0``..``s5`` (after Okabe and Ito's palette for colour-blind readers) and
``teacher``; ``d0``..``d11`` are an order, such as the depth in a network, from blue over red to yellow.
Their values for light and dark are in page.css.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.page.charts.svg import Svg, tag

COLOURS, DEPTHS = 6, 12
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")
MARKERS = ("circle", "square", "triangle", "diamond", "plus", "down")


@dataclass(frozen=True)
class Style:
    """``name`` is the CSS class that gives the colour; ``dash`` an SVG dash pattern or empty."""

    name: str
    dash: str
    marker: str


TEACHER = Style("teacher", "5 3", "ring")
STUDENT = Style("s0", "", "circle")


def series_style(index: int) -> Style:
    """The style of the series with this index; colour and marker repeat only together."""
    turn = index // COLOURS
    return Style(
        f"s{index % COLOURS}",
        DASHES[(index + turn) % len(DASHES)],
        MARKERS[(index + turn) % len(MARKERS)],
    )


def depth_style(index: int, count: int, dash: str = "") -> Style:
    """The style of the series with this index of ``count`` that are in an order."""
    shade = round(index * (DEPTHS - 1) / max(1, count - 1))
    return Style(f"d{shade}", dash, MARKERS[index % len(MARKERS)])


def depth_swatch() -> Svg:
    """The key of colours that are in an order."""
    width = 28 / DEPTHS
    parts = [
        tag(
            "rect", class_=f"fill solid d{index}", x=index * width, y=4, width=width + 0.1, height=6
        )
        for index in range(DEPTHS)
    ]
    return tag("svg", *parts, class_="swatch", viewBox="0 0 28 14", aria_hidden="true")


def marker(style: Style, x: float, y: float, radius: float = 5, tip: str = "") -> Svg:
    """A marker centred on (x, y); ``tip`` is what a reader sees on it."""
    r, extra = radius, {"data_tip": tip} if tip else {}
    kind = f"mark {style.name}"
    if style.marker in ("circle", "ring"):
        hollow = " hollow" if style.marker == "ring" else ""
        return tag("circle", class_=kind + hollow, cx=x, cy=y, r=r, **extra)
    outlines = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
        "down": [(0, 1.15), (1.1, -0.85), (-1.1, -0.85)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "plus": [
            (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
            (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
        ],
    }  # fmt: skip
    points = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in outlines[style.marker])
    return tag("polygon", class_=kind, points=points, **extra)


def swatch(style: Style, *, line: bool, dot: bool) -> Svg:
    """The key of a series in a legend."""
    parts = []
    if line:
        parts.append(
            tag(
                "line", class_=f"line {style.name}", x1=1, y1=7, x2=27, y2=7,
                **({"stroke_dasharray": style.dash} if style.dash else {}),
            )
        )  # fmt: skip
    if dot:
        parts.append(marker(style, 14, 7, 4.5))
    return tag("svg", *parts, class_="swatch", viewBox="0 0 28 14", aria_hidden="true")
