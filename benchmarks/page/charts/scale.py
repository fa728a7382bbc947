"""From values to positions, and where an axis has its ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, Sequence

_FALLBACK = (0.0, 1.0)


@dataclass(frozen=True)
class Scale:
    """Maps ``low``..``high`` of an axis onto ``start``..``end`` of the drawing, in user units.

    ``log`` spaces by factors; both limits are above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def holds(self, value: float | None) -> bool:
        """Whether the value can be drawn: a number between the limits."""
        return value is not None and self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values between the limits, ascending."""
        if self.log:
            return log_ticks(self.low, self.high, count)
        return nice_ticks(self.low, self.high, count)


def usable(values: Iterable[float | None], *, log: bool = False) -> list[float]:
    """The values that an axis can show: finite, and above 0 on a log axis."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    return [value for value in found if value > 0] if log else found


def limits(
    values: Iterable[float | None],
    *,
    log: bool = False,
    pad: float = 0.06,
    zero: bool = False,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """An interval around the values, padded by ``pad`` of its length and never empty.

    ``zero`` makes a linear axis begin at 0; ``within`` is what padding must not leave, such as
    0 to 100 for percentages.
    """
    known = usable(values, log=log)
    if not known:
        return (1.0, 10.0) if log else _FALLBACK
    low, high = min(known), max(known)
    if log:
        factor = (high / low) ** pad
        factor = factor if factor > 1.02 else 1.25
        return low / factor, high * factor
    if zero:
        low = min(low, 0.0)
    length = high - low
    if length <= abs(high) * 1e-9:
        length = abs(high) * 0.2 or 1.0
        low, high = low - length / 2, high + length / 2
    margin = (high - low) * pad
    padded_low = low if zero and low == 0 else low - margin
    return max(padded_low, within[0]), min(high + margin, within[1])


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between the limits.

    >>> nice_ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(86.1, 88.6, 4)
    [87.0, 88.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(index * step, digits) for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Powers of ten, with their multiples by 2 and 5 or by each digit where the span is short.

    >>> log_ticks(0.1, 100)
    [0.1, 1.0, 10.0, 100.0]
    >>> log_ticks(0.09, 0.6)
    [0.1, 0.2, 0.5]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    best: list[float] = []
    for digits in ((1,), (1, 2, 5), (1, 2, 3, 5, 7), tuple(range(1, 10))):
        ticks = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if not best or len(ticks) <= count + 2:
            best = ticks or best
        if len(best) >= 3:
            return best
    return best if len(best) >= 2 else nice_ticks(low, high, count)


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with as many decimals as the finest of them needs.

    >>> tick_labels([87.8, 88.0]), tick_labels([0.05, 0.1, 0.5]), tick_labels([0.0, 500.0, 1000.0])
    (['87.8', '88.0'], ['0.05', '0.1', '0.5'], ['0', '500', '1k'])
    """
    steps = {round(after - before, 12) for before, after in zip(values, values[1:])}
    even = bool(steps) and max(steps) < min(steps) * 1.001
    decimals = max((len(f"{value:.6g}".partition(".")[2]) for value in values), default=0)
    if even and decimals and max(map(abs, values)) < 1000:
        return [f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]
    return [tick_label(value) for value in values]


def tick_label(value: float) -> str:
    """A tick as a reader expects it: no needless zeros, thousands as k, M and G.

    >>> [tick_label(value) for value in (0.0, 0.05, 2.5, 1000, 25000, 2e6)]
    ['0', '0.05', '2.5', '1k', '25k', '2M']
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
