"""Numbers as a reader wants them: units, as many digits as mean something, thin spaces.

Shares and changes of a share are told apart everywhere: ``percent`` is of something, ``points`` is a
difference of two percentages.  What is not known is a dash.
"""

from __future__ import annotations

import math
from typing import Any, Mapping, Sequence

UNKNOWN = "\N{EN DASH}"
THIN = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def known(source: Any, *path: str) -> float | None:
    """The number at ``path`` of nested mappings, None where there is none or it is not finite."""
    value = source
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(source: Any, *path: str) -> Sequence[float] | None:
    """Both ends of the interval at ``path``, or None."""
    value = source
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = (known({"end": end}, "end") for end in value)
    return None if low is None or high is None else (low, high)


def change_interval(source: Any, *path: str) -> Sequence[float] | None:
    """The interval of a gain as ``times`` says it: below 1, of how many times slower.

    >>> change_interval({"interval95": [0.4, 0.5]}, "interval95")
    (2.0, 2.5)
    """
    ends = interval(source, *path)
    if ends is None or not 0 < ends[0] * ends[1] < 1:
        return ends
    return 1 / ends[1], 1 / ends[0]


def ratio(part: float | None, whole: float | None) -> float | None:
    """``part / whole``, None where it means nothing."""
    return part / whole if part is not None and whole is not None and whole > 0 else None


def grouped(value: float | None, decimals: int = 0) -> str:
    """
    >>> grouped(40551040)
    '40\\u202f551\\u202f040'
    """
    if value is None:
        return UNKNOWN
    return _minus(f"{value:,.{decimals}f}").replace(",", THIN)


def digits(value: float | None, significant: int = 3) -> str:
    """So many significant digits, never in powers of ten.

    >>> [digits(value) for value in (0.1038, 4.4086, 1234.5, 0.0, None)]
    ['0.104', '4.41', '1\\u202f234', '0', '–']
    """
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    rounded = float(f"{value:.{significant}g}")
    if abs(value) >= 10 ** (significant - 1):
        return grouped(value)
    decimals = significant - 1 - math.floor(math.log10(abs(rounded)))
    return grouped(value, max(0, decimals))


def scaled(value: float | None, unit: str, significant: int = 3) -> str:
    """With the prefix that makes it readable.

    >>> scaled(18727552, "MACs"), scaled(0.00213, "J"), scaled(238693, "B")
    ('18.7\\u202fM\\u202fMACs', '2.13\\u202fmJ', '239\\u202fkB')
    """
    if value is None:
        return UNKNOWN
    fitting = (pair for pair in _PREFIXES if abs(value) >= pair[0] * 0.9995)
    size, letter = next(fitting, (1.0, "") if value == 0 else _PREFIXES[-1])
    if len(unit) > 2:  # a noun is counted: 18.7 M MACs
        return THIN.join(part for part in (digits(value / size, significant), letter, unit) if part)
    return f"{digits(value / size, significant)}{THIN}{letter}{unit}".rstrip(THIN)


def milliseconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{digits(value)}{THIN}ms"


def percent(value: float | None, decimals: int = 2) -> str:
    """A percentage that is given in percent."""
    return UNKNOWN if value is None else f"{_minus(f'{value:.{decimals}f}')}{THIN}%"


def share(value: float | None, decimals: int = 1) -> str:
    """A fraction in [0, 1] as a percentage."""
    return percent(None if value is None else value * 100, decimals)


def points(value: float | None) -> str:
    """A difference of two percentages.

    >>> points(-0.83), points(0.0)
    ('−0.83\\u202fpoints', '±0.00\\u202fpoints')
    """
    if value is None:
        return UNKNOWN
    rounded = round(value, 2)
    shown = f"±{abs(rounded):.2f}" if rounded == 0 else f"{rounded:+.2f}"
    return f"{_minus(shown)}{THIN}points"


def times(factor: float | None, more: str, less: str) -> str:
    """How many times, always above 1, with the word that tells the direction.

    >>> times(4.4086, "faster", "slower"), times(0.8, "faster", "slower"), times(1.0, "faster", "slower")
    ('4.41\\u202f× faster', '1.25\\u202f× slower', 'the same')
    """
    if factor is None or factor <= 0:
        return UNKNOWN
    if abs(factor - 1) < 0.0005:
        return "the same"
    word, shown = (more, factor) if factor > 1 else (less, 1 / factor)
    return f"{digits(shown)}{THIN}{TIMES} {word}"


def within(ends: Sequence[float] | None, unit: str = "") -> str:
    """A 95% interval, or an empty text.

    >>> within((4.31, 4.52), "ms")
    '95% in [4.310, 4.520]\\u202fms'
    """
    if ends is None:
        return ""
    shown = f"95% in [{digits(ends[0], 4)}, {digits(ends[1], 4)}]"
    return f"{shown}{THIN}{unit}" if unit else shown


def duration(seconds: float | None) -> str:
    """
    >>> [duration(s) for s in (0.43, 12.3, 489, 7300)]
    ['0.43\\u202fs', '12.3\\u202fs', '8\\u202fmin 9\\u202fs', '2\\u202fh 1\\u202fmin']
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.3g}{THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
