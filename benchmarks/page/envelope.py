"""A series of any length as few points that keep its extremes, made while it is read."""

from __future__ import annotations

from typing import Tuple

Point = Tuple[float, float]
_MOST_CHANGES = 16


class Envelope:
    """Takes points in order of x; each stretch of them is remembered by its lowest and its highest.

    Stretches are equally many points long and at most ``most`` (even) in number: when there would be
    more, neighbours become one. Nothing else is held in memory.

    Attributes:
        count: Points taken.
        changes: The first points whose y differs from the one before; also the first point.
    """

    def __init__(self, most: int = 128) -> None:
        self.count = 0
        self.changes: list[Point] = []
        self._most = most
        self._stretches: list[tuple[Point, Point]] = []
        self._length, self._filled = 1, 0
        self._first: Point = (0.0, 0.0)
        self._last: Point = (0.0, 0.0)

    @property
    def last(self) -> Point:
        """The point taken last."""
        return self._last

    def add(self, x: float, y: float) -> None:
        """Take a point."""
        point = (x, y)
        if not self.count:
            self._first = point
        if len(self.changes) <= _MOST_CHANGES and (not self.count or y != self._last[1]):
            self.changes.append(point)
        self.count += 1
        self._last = point
        if not self._filled and len(self._stretches) == self._most:
            self._stretches = _pairwise(self._stretches)
            self._length *= 2
        if self._filled:
            self._stretches[-1] = _joined(self._stretches[-1], (point, point))
        else:
            self._stretches.append((point, point))
        self._filled = (self._filled + 1) % self._length

    def points(self, most: int) -> list[Point]:
        """At most ``most`` (5 or more) points in order of x: both ends, and each stretch's extremes."""
        stretches = self._stretches
        while 2 * len(stretches) + 2 > max(5, most):
            stretches = _pairwise(stretches)
        found = {point for stretch in stretches for point in stretch}
        if self.count:
            found |= {self._first, self._last}
        return sorted(found)


def _pairwise(stretches: list[tuple[Point, Point]]) -> list[tuple[Point, Point]]:
    pairs = [stretches[index : index + 2] for index in range(0, len(stretches), 2)]
    return [_joined(pair[0], pair[-1]) for pair in pairs]


def _joined(one: tuple[Point, Point], other: tuple[Point, Point]) -> tuple[Point, Point]:
    low = min(one[0], other[0], key=lambda point: point[1])
    high = max(one[1], other[1], key=lambda point: point[1])
    return low, high
