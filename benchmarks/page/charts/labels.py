"""Where names go beside their points, so that they do not cover one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

NAME_PX = 12
_LINE_PX = 14
_READABLE = 0.25  # of a name may be covered by others


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide * high if wide > 0 and high > 0 else 0.0

    def outside(self, area: Box) -> float:
        """How far it sticks out of ``area``."""
        return (
            max(0.0, area.left - self.left)
            + max(0.0, self.right - area.right)
            + max(0.0, area.top - self.top)
            + max(0.0, self.bottom - area.bottom)
        )


@dataclass(frozen=True)
class Placed:
    text: str
    x: float
    y: float
    anchor: str


def text_width(text: str, size_px: float) -> float:
    """About how wide a text is in a sans-serif face; never much too little."""
    return len(text) * size_px * 0.56


def shortened(text: str, letters: int) -> str:
    """At most so many letters, of the beginning and of the end, where similar names differ.

    >>> shortened("resnet20-oneshot-depth", 12)
    'resne…-depth'
    """
    if len(text) <= letters:
        return text
    tail = letters // 2
    return text[: letters - tail - 1] + "…" + text[len(text) - tail :]


def place_labels(
    labels: Sequence[tuple[float, float, str]],
    dots: Sequence[tuple[float, float]],
    lines: Sequence[Box],
    area: Box,
) -> list[Placed]:
    """For each (x, y, text) the spot around it that covers least; texts too long are shortened.

    A name for which only places over other names are left is left out.
    """
    taken = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in dots] + list(lines)
    placed: list[Placed] = []
    names: list[Box] = []
    longest = max(4, int((area.right - area.left) * 0.6 / (NAME_PX * 0.56)))
    for x, y, full in sorted(labels, key=lambda label: (label[1], label[0])):
        text = shortened(full, longest)
        width = text_width(text, NAME_PX)
        spots = [(x + 10, y + 4, "start"), (x - 10, y + 4, "end")]
        for rise in (1, 2, 3, 4):
            for side in (-rise, rise):
                at = y + 4 + side * _LINE_PX
                spots += [(x, at, "middle"), (x + 10, at, "start"), (x - 10, at, "end")]
        boxes = [_box(spot, width) for spot in spots]
        costs = [
            sum(box.overlap(other) for other in taken) + 40 * box.outside(area) + index
            for index, box in enumerate(boxes)
        ]
        best = costs.index(min(costs))
        if sum(boxes[best].overlap(other) for other in names) > _READABLE * _LINE_PX * width:
            continue
        box = boxes[best]
        shift = max(0.0, area.left - box.left) - max(0.0, box.right - area.right)
        lower = max(0.0, area.top - box.top) - max(0.0, box.bottom - area.bottom)
        names.append(box)
        taken.append(Box(box.left + shift, box.top + lower, box.right + shift, box.bottom + lower))
        spot_x, spot_y, anchor = spots[best]
        placed.append(Placed(text, spot_x + shift, spot_y + lower, anchor))
    return placed


def _box(spot: tuple[float, float, str], width: float) -> Box:
    x, y, anchor = spot
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return Box(left, y - 11, left + width, y + 3)
