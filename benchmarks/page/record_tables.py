"""The numbers of one record as tables and sentences, with intervals and uncertainties where it has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import Cell, Column, Table
from benchmarks.page.comparison import COLUMNS, latency_rows, less_row, more_row
from benchmarks.page.reading import Record, mapping

WHO = ("teacher", "student")
# Where a record keeps the interval of a change, by the label of its row.
_INTERVALS = {
    "latency, median": "interval95",
    "latency, p90": "p90_interval95",
    "latency, p99": "p99_interval95",
    "throughput": "throughput_interval95",
}


def pair(record: Record, *path: str) -> tuple[float | None, float | None]:
    """The number at ``path`` of teacher and student."""
    teacher, student = (numbers.known(record.models.get(who), *path) for who in WHO)
    return teacher, student


def joules(value: float | None) -> str:
    return numbers.scaled(value, "J")


def per_second(value: float | None) -> str:
    return numbers.UNKNOWN if value is None else f"{numbers.digits(value, 4)}{numbers.THIN}/s"


def measured_table(record: Record) -> Table:
    """Teacher beside student; a change whose interval holds 1 is shown as undecided."""
    rows = latency_rows(record.models)
    for label, path in (("energy per inference", "total_j"), ("energy above idle", "net_j")):
        teacher, student = pair(record, "energy", path)
        if teacher is not None or student is not None:
            rows.append(less_row(label, teacher, student, joules, ("less", "more")))
    teacher, student = pair(record, "throughput_per_s")
    if teacher is not None or student is not None:
        rows.append(more_row("throughput", teacher, student, per_second, ("more", "less")))
    columns = [*COLUMNS, Column("95% interval of the change", True)]
    return Table(columns, [_with_interval(row, record) for row in rows], _counts(record))


def _with_interval(row: Sequence[Cell], record: Record) -> Sequence[Cell]:
    key = _INTERVALS.get(row[0].text, "")
    ends = numbers.change_interval(record.data.get("speedup"), key)
    if ends is None:
        return [*row, Cell(numbers.UNKNOWN if key else "")]
    low, high = ends
    shown = f"{numbers.digits(low)} to {numbers.digits(high)}{numbers.THIN}{numbers.TIMES}"
    if not low <= 1 <= high:
        return [*row, Cell(shown, low)]
    change = replace(row[3], text=f"{row[3].text}, undecided", tone="quiet")
    return [*row[:3], change, row[4], Cell(shown, low)]


def _counts(record: Record) -> str:
    """How many calls, and the interval of each median."""
    parts = []
    for who in WHO:
        model = record.models.get(who)
        count = numbers.known(model, "latency_ms", "n")
        ends = numbers.interval(model, "latency_ms", "interval95")
        if count is not None:
            span = f", median {numbers.within(ends, 'ms')}" if ends else ""
            parts.append(f"{who} n{numbers.THIN}={numbers.THIN}{numbers.grouped(count)}{span}")
    return "; ".join(parts) + ("." if parts else "")


def server_table(record: Record) -> Table | None:
    """What each offered load of the server scenario gave, None in the other scenarios."""
    rows = []
    for who in WHO:
        server = mapping(mapping(record.models.get(who)).get("server"))
        for load in server.get("tried") or ([server] if server else []):
            found = [
                numbers.known(load, key) for key in ("offered_qps", "served_qps", "n", "p50", "p99")
            ]
            shows = (per_second, per_second, numbers.grouped, *[numbers.milliseconds] * 2)
            rows.append(
                [Cell(who), *(Cell(show(value), value) for show, value in zip(shows, found))]
            )
    if not rows:
        return None
    titles = ("offered", "served", "queries", "median", "99th percentile")
    columns = [Column("model"), *(Column(title, True) for title in titles)]
    return Table(columns, rows, "Latency from arrival, under load of random arrivals.")


def records_table(records: Sequence[tuple[str, Record]]) -> Table:
    """A line for each (anchor of its article, record); numbers only of complete ones."""
    columns = [
        Column("measurements"),
        Column("conditions"),
        Column("status"),
        *(Column(title, True) for title in ("teacher, median", "student, median", "faster")),
        Column("95% interval", True),
    ]
    rows = []
    for anchor, record in records:
        usable = record.status == "complete"
        found = pair(record, "latency_ms", "p50")
        teacher, student = found if usable else (None, None)
        factor = numbers.ratio(teacher, student)
        ends = numbers.change_interval(record.data.get("speedup"), "interval95") if usable else None
        between = (
            [] if ends is None else [f"{numbers.digits(ends[0])} to {numbers.digits(ends[1])}"]
        )
        rows.append([
            Cell(record.bundle, link=anchor),
            Cell(record.condition),
            Cell(record.status if usable else record.status.upper(), tone="good" if usable else "bad"),
            Cell(numbers.milliseconds(teacher), teacher),
            Cell(numbers.milliseconds(student), student),
            Cell(numbers.times(factor, "", "slower").strip(), factor),
            Cell("".join(between) or numbers.UNKNOWN, None if ends is None else ends[0]),
        ])  # fmt: skip
    return Table(columns, rows, "Teacher and student were measured in turns, in one run each.")


def remarks(record: Record) -> list[str]:
    """Sentences on energy and the cross-check of LoadGen."""
    lines = []
    for who in WHO:
        model = mapping(record.models.get(who))
        energy = mapping(model.get("energy"))
        total = numbers.known(energy, "total_j")
        if total is not None:
            lines.append(f"energy, {who}: {joules(total)}{_spread(energy)}{_sensor(energy)}")
        check = mapping(model.get("loadgen"))
        theirs, ours = (numbers.known(check, key) for key in ("loadgen_p90_ms", "p90_ms"))
        if theirs is not None:
            said = "agree" if check.get("agree") else "DO NOT agree"
            noise = numbers.milliseconds(numbers.known(check, "noise_ms"))
            lines.append(
                f"LoadGen, {who}: p90 {numbers.milliseconds(theirs)}, here "
                f"{numbers.milliseconds(ours)}; they {said} within the noise of {noise}"
            )
    return lines


def _spread(energy: Mapping[str, Any]) -> str:
    spread = numbers.known(energy, "uncertainty_j")
    return "" if spread is None else f" ± {joules(spread)} (one standard uncertainty)"


def _sensor(energy: Mapping[str, Any]) -> str:
    parts = []
    for key, text in (
        ("inferences", "over {} inferences"),
        ("updates", "{} updates of the sensor"),
        ("power_w", "{} W while running"),
        ("idle_w", "{} W idle"),
    ):
        value = numbers.known(energy, key)
        if value is not None:
            shown = numbers.digits(value) if key.endswith("_w") else numbers.grouped(value)
            parts.append(text.format(shown))
    return f", {', '.join(parts)}" if parts else ""
