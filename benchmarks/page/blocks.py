"""What a page is made of, as plain data; the template knows each kind of block and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Sequence, Union

from benchmarks.page.charts.style import Style, swatch
from benchmarks.page.charts.svg import Svg

FULL, WIDE, NARROW = (
    1120,
    560,
    352,
)  # a figure is drawn twice, so that its letters keep their size on a phone
HEIGHT = 300


@dataclass(frozen=True)
class Card:
    """One headline number: student, teacher, and the change; ``tone`` is better, worse or even."""

    label: str
    student: str
    teacher: str
    change: str
    tone: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Goal:
    """``fill`` is how far the bar reaches and ``limit`` where the goal is, both in percent of its track."""

    label: str
    asked: str
    reached: str
    met: bool
    fill: float
    limit: float


@dataclass(frozen=True)
class Goals:
    kind: ClassVar[str] = "goals"
    goals: Sequence[Goal]


@dataclass(frozen=True)
class Flag:
    """A sentence to be seen; ``tone`` is bad, warn or note, ``head`` its first word or two.

    ``lines`` are what it sums up.
    """

    tone: str
    head: str
    text: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Flags:
    kind: ClassVar[str] = "flags"
    flags: Sequence[Flag]


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    swatch: Svg


def key(name: str, style: Style, *, line: bool = True, dot: bool = False) -> Key:
    return Key(name, swatch(style, line=line, dot=dot))


@dataclass(frozen=True)
class Figure:
    title: str
    wide: Svg
    narrow: Svg
    caption: str = ""
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room; ``full`` gives each the whole width."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]
    full: bool = False


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """``order`` is what sorting compares, a number or a text; ``bar`` a bar's length in percent.

    ``tone`` may be good, bad or quiet; ``link`` an anchor on this page.
    """

    text: str
    order: float | str | None = None
    bar: float | None = None
    tone: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Lines:
    """Sentences as a list."""

    kind: ClassVar[str] = "lines"
    lines: Sequence[str]


Block = Union[Cards, Goals, Flags, Figures, Table, Facts, Lines]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclass(frozen=True)
class Article:
    """A run, a set of measurements, or the overview; ``tone`` of its verdict is good, bad or quiet."""

    anchor: str
    title: str
    subtitle: str
    verdict: str
    tone: str
    sentence: str
    sections: Sequence[Section] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    title: str
    articles: Sequence[Article]
    made: str
