"""Names at the ends of lines, in a column beside the drawing, in the order of the lines."""

from __future__ import annotations

from typing import Sequence

from benchmarks.page.charts.labels import shortened, text_width
from benchmarks.page.charts.style import Style
from benchmarks.page.charts.svg import Svg, tag

END_PX, _LINE_PX = 11, 12.5
_LEADER_PX = 14  # from a line's end to its name
_LONGEST = 18  # letters


def column_width(names: Sequence[str]) -> float:
    """How wide the column has to be; 0 without names."""
    widest = max((text_width(shortened(name, _LONGEST), END_PX) for name in names), default=0.0)
    return widest + _LEADER_PX + 6 if widest else 0.0


def end_names(
    ends: Sequence[tuple[float, float, str, Style]], column: float, top: float, bottom: float
) -> list[Svg]:
    """For each (x, y, name, style) the name at ``column``, with a line to it from where its line ends.

    Names keep apart from each other. Where there is no room for all, some are left out, evenly, and
    never the outermost.
    """
    ordered = sorted(ends, key=lambda end: end[1])
    room = max(1, int((bottom - top) / _LINE_PX) + 1)
    if len(ordered) > room:
        last = len(ordered) - 1
        chosen = sorted({round(index * last / max(1, room - 1)) for index in range(room)})
        ordered = [ordered[index] for index in chosen]
    places = spread([y for _, y, _, _ in ordered], _LINE_PX, top, bottom)
    parts = []
    for (x, y, name, style), at in zip(ordered, places):
        leader = f"M{x + 2:.1f},{y:.1f} L{column + 3:.1f},{y:.1f} L{column + _LEADER_PX - 3:.1f},{at:.1f}"
        parts.append(tag("path", class_=f"leader {style.name}", d=leader))
        parts.append(
            tag("text", shortened(name, _LONGEST), class_=f"ending {style.name}",
                x=column + _LEADER_PX, y=at + 4)
        )  # fmt: skip
    return parts


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending positions moved as little as possible so that neighbours are ``gap`` apart.

    Within ``low`` to ``high`` as far as there is room.

    >>> spread([10, 10, 30], 5, 0, 100)
    [7.5, 12.5, 30.0]
    """
    # Blocks of names that touch, each at the mean of what its members want (pool adjacent violators).
    blocks: list[tuple[float, int]] = []  # (sum of wanted starts, members)
    for position in wanted:
        blocks.append((float(position), 1))
        while len(blocks) > 1 and _start(blocks[-2]) + gap * blocks[-2][1] > _start(blocks[-1]):
            (after, more), (before, count) = blocks.pop(), blocks.pop()
            blocks.append((before + after - gap * count * more, count + more))
    placed = [_start(block) + gap * index for block in blocks for index in range(block[1])]
    for index in range(len(placed)):
        placed[index] = max(placed[index], low + gap * index)
    for index in range(len(placed)):
        from_end = len(placed) - 1 - index
        placed[from_end] = min(placed[from_end], high - gap * index)
    return placed


def _start(block: tuple[float, int]) -> float:
    return block[0] / block[1]
