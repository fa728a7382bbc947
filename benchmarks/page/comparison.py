"""Teacher against student: headline cards and the whole table, every change computed from both numbers."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Optional, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import Card, Cell, Column, Table

Show = Callable[[Optional[float]], str]
COLUMNS = (Column(""), Column("teacher", True), Column("student", True), Column("change", True),
         Column("share of the teacher's", True))  # fmt: skip


def less_card(
    label: str,
    teacher: float | None,
    student: float | None,
    show: Show,
    better: tuple[str, str],
    note: str = "",
) -> Card:
    """A number of which less is better; ``better`` says it: (faster, slower)."""
    factor = numbers.ratio(teacher, student)
    return Card(
        label,
        show(student),
        show(teacher),
        numbers.times(factor, *better),
        _tone(None if factor is None else factor - 1),
        note,
    )


def accuracy_card(teacher: float | None, student: float | None, note: str = "") -> Card:
    """Top-1 in percent, the change in points."""
    change = None if teacher is None or student is None else round(student - teacher, 9)
    return Card(
        "top-1 accuracy",
        numbers.percent(student),
        numbers.percent(teacher),
        numbers.points(change),
        _tone(change),
        note,
    )


def less_row(
    label: str,
    teacher: float | None,
    student: float | None,
    show: Show,
    better: tuple[str, str],
) -> Sequence[Cell]:
    """A line of the table about a number of which less is better."""
    factor = numbers.ratio(teacher, student)
    return [
        Cell(label),
        Cell(show(teacher), teacher),
        Cell(show(student), student),
        Cell(numbers.times(factor, *better), factor, tone=_cell_tone(factor)),
        Cell(numbers.share(numbers.ratio(student, teacher)), numbers.ratio(student, teacher)),
    ]


def more_row(
    label: str,
    teacher: float | None,
    student: float | None,
    show: Show,
    better: tuple[str, str],
) -> Sequence[Cell]:
    """A line about a number of which more is better, such as throughput."""
    factor = numbers.ratio(student, teacher)
    return [
        Cell(label),
        Cell(show(teacher), teacher),
        Cell(show(student), student),
        Cell(numbers.times(factor, *better), factor, tone=_cell_tone(factor)),
        Cell(numbers.share(factor), factor),
    ]


def accuracy_row(teacher: float | None, student: float | None) -> Sequence[Cell]:
    change = None if teacher is None or student is None else round(student - teacher, 9)
    tone = "" if change is None or abs(change) < 0.005 else "good" if change > 0 else "bad"
    return [
        Cell("top-1"),
        Cell(numbers.percent(teacher), teacher),
        Cell(numbers.percent(student), student),
        Cell(numbers.points(change), change, tone=tone),
        Cell(""),
    ]


def comparison_table(rows: Sequence[Sequence[Cell]], caption: str = "") -> Table:
    return Table(COLUMNS, list(rows), caption)


def latency_rows(models: Mapping[str, Any]) -> list[Sequence[Cell]]:
    """A line for each percentile that either model states, and one for the mean."""
    rows = []
    for name in ("p50", "p90", "p95", "p99", "p99.9", "mean"):
        pair = [
            numbers.known(models.get(who), "latency_ms", name) for who in ("teacher", "student")
        ]
        if any(value is not None for value in pair):
            label = "latency, median" if name == "p50" else f"latency, {name}"
            rows.append(
                less_row(label, pair[0], pair[1], numbers.milliseconds, ("faster", "slower"))
            )
    return rows


def sentence(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    """What the student is, in one sentence."""
    pairs = (
        ("runs", ("latency_ms", "p50"), ("faster", "slower"), "as fast"),
        ("is", ("size_bytes",), ("smaller", "larger"), "as large"),
        ("has", ("macs",), ("fewer MACs", "more MACs"), "as many MACs"),
    )
    claims = []
    for verb, path, better, even in pairs:
        factor = numbers.ratio(numbers.known(teacher, *path), numbers.known(student, *path))
        if factor is not None:
            words = numbers.times(factor, *better)
            claims.append(f"{verb} {words if words != 'the same' else even}")
    accuracy = numbers.known(student, "top1")
    said = "The student " + _listed(claims) if claims else "Nothing was measured of both networks"
    if accuracy is None:
        return f"{said}."
    top1, reference = numbers.percent(accuracy), numbers.known(teacher, "top1")
    if reference is None:
        return f"{said}, at {top1} top-1."
    change = round(accuracy - reference, 9)
    side = "below" if change < 0 else "above"
    beside = "as its teacher" if abs(change) < 0.005 else (
        f"{numbers.points(abs(change)).lstrip('+±')} {side} its teacher"
    )  # fmt: skip
    return f"{said}, at {top1} top-1: {beside}."


def _listed(claims: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(claims[:-1]), claims[-1]]))


def _tone(gain: float | None) -> str:
    if gain is None or abs(gain) < 0.0005:
        return "even"
    return "better" if gain > 0 else "worse"


def _cell_tone(factor: float | None) -> str:
    return {"better": "good", "worse": "bad"}.get(_tone(None if factor is None else factor - 1), "")
