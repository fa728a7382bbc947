"""A series of any length as few stretches with their mean and extremes, made while it is read."""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

Point = Tuple[float, float]
_MOST_CHANGES = 16


class Stretch(NamedTuple):
    """Points that follow one another: first and last x, how many, sum, lowest and highest of their y."""

    start: float
    end: float
    size: int
    total: float
    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2

    @property
    def mean(self) -> float:
        # Rounding must not put it outside of what it is the mean of.
        return min(max(self.total / self.size, self.low), self.high)


class Envelope:
    """Takes points in order of x and remembers them as at most ``most`` (even) stretches.

    Stretches are equally many points long, but for the last; when there would be more, neighbours become
    one. Nothing else is held in memory.

    Attributes:
        count: Points taken.
        changes: The first point, and the first few whose y differs from the one before.
    """

    def __init__(self, most: int = 128) -> None:
        self.count = 0
        self.changes: list[Point] = []
        self._most = most
        self._stretches: list[Stretch] = []
        self._length, self._filled = 1, 0
        self._last: Point = (0.0, 0.0)

    @property
    def last(self) -> Point:
        """The point taken last."""
        return self._last

    def add(self, x: float, y: float) -> None:
        """Take a point."""
        if len(self.changes) <= _MOST_CHANGES and (not self.count or y != self._last[1]):
            self.changes.append((x, y))
        self.count += 1
        self._last = (x, y)
        if not self._filled and len(self._stretches) == self._most:
            self._stretches = _pairwise(self._stretches)
            self._length *= 2
        one = Stretch(x, x, 1, y, y, y)
        if self._filled:
            self._stretches[-1] = _joined(self._stretches[-1], one)
        else:
            self._stretches.append(one)
        self._filled = (self._filled + 1) % self._length

    def stretches(self, most: int) -> list[Stretch]:
        """At most ``most`` (1 or more) of them, in order of x."""
        found = self._stretches
        while len(found) > most:
            found = _pairwise(found)
        return list(found)


def _pairwise(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Each two neighbours as one; the last may have none."""
    pairs = [stretches[index : index + 2] for index in range(0, len(stretches), 2)]
    return [_joined(*pair) if len(pair) == 2 else pair[0] for pair in pairs]


def _joined(one: Stretch, other: Stretch) -> Stretch:
    return Stretch(
        one.start,
        other.end,
        one.size + other.size,
        one.total + other.total,
        min(one.low, other.low),
        max(one.high, other.high),
    )
