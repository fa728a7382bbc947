"""What one record of measurements says: conditions, distributions, numbers, and whether to trust it."""

from __future__ import annotations

from typing import Any

from benchmarks.page import numbers
from benchmarks.page.blocks import (
    Article,
    Block,
    Card,
    Cards,
    Facts,
    Figures,
    Flag,
    Flags,
    Lines,
    Section,
)
from benchmarks.page.comparison import less_card
from benchmarks.page.facts import environment_blocks, flat
from benchmarks.page.latency_figures import latency_figures
from benchmarks.page.layer_table import time_table
from benchmarks.page.reading import Record, mapping
from benchmarks.page.record_tables import (
    WHO,
    joules,
    measured_table,
    pair,
    per_second,
    remarks,
    server_table,
)

_STATUS = {
    "partial": "The run was interrupted; its numbers are not comparable.",
    "invalid": "Its numbers mean nothing.",
}


def record_article(record: Record, anchor: str, name: str) -> Article:
    """A record whose run is not on the page."""
    verdict = {"complete": "measured"}.get(record.status, f"{record.status} record")
    tone = "quiet" if record.status == "complete" else "bad"
    flags = record_flags(record)
    opening: list[Block] = []
    if record.status == "complete":
        opening.append(Cards(record_cards(record)))
    if flags:
        opening.append(Flags(flags))
    environment = environment_blocks(
        record.data["environment"], mapping(record.data["modes"].get("versions"))
    )
    sections = [
        Section("", opening),
        *record_sections(record),
        *_layers(record),
        Section("Where it was measured", environment),
    ]
    return Article(
        anchor,
        name,
        record.condition,
        verdict,
        tone,
        _claim(record),
        [section for section in sections if section.blocks],
    )


def record_sections(record: Record, *, dated: bool = False) -> list[Section]:
    """Distribution, table and conditions; an invalid record only says under which conditions.

    ``dated`` puts the moment into the title, which tells two records of the same conditions apart.
    """
    blocks: list[Block] = []
    if record.status != "complete":
        blocks.append(Flags(status_flags(record)))
    if record.status != "invalid":
        figures = latency_figures(record.models)
        blocks += [Figures(figures)] if figures else []
        table = measured_table(record)
        blocks += [table] if table.rows else []
        loads, lines = server_table(record), remarks(record)
        blocks += [loads] if loads else []
        blocks += [Lines(lines)] if lines else []
    blocks.append(Facts(_conditions(record)))
    when = f", {str(record.data['created'])[:19].replace('T', ' ')}" if dated else ""
    return [Section(f"Measured: {record.condition}{when}", blocks)]


def record_flags(record: Record) -> list[Flag]:
    """What a reader must know before believing the record."""
    where = record.condition
    flags = [Flag(flag.tone, flag.head, f"{where}: {flag.text}") for flag in status_flags(record)]
    warnings = [str(text) for text in record.data["checks"]["warnings"]]
    if warnings:
        head = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        flags.append(Flag("warn", head, f"about {where}:", warnings))
    for who in WHO:
        energy = mapping(mapping(record.models.get(who)).get("energy"))
        if energy.get("why"):
            flags.append(Flag("warn", "No energy", f"{where}: {who}: {energy['why']}"))
        if energy.get("warnings"):
            lines = [str(text) for text in energy["warnings"]]
            flags.append(Flag("warn", "Energy", f"{where}: {who}:", lines))
    return flags


def status_flags(record: Record) -> list[Flag]:
    """Nothing for a complete record."""
    if record.status == "complete":
        return []
    because = "; ".join(str(reason) for reason in record.data["invalid_because"])
    text = _STATUS.get(record.status, "") + (f" Because: {because}." if because else "")
    return [Flag("bad", f"{record.status.capitalize()} record", text)]


def record_cards(record: Record) -> list[Card]:
    """Headline numbers of a complete record."""
    speedup = numbers.change_interval(record.data.get("speedup"), "interval95")
    cards = [
        less_card(
            "median latency", *pair(record, "latency_ms", "p50"), numbers.milliseconds,
            ("faster", "slower"), numbers.within(speedup, numbers.TIMES),
        ),
        less_card(
            "99th percentile", *pair(record, "latency_ms", "p99"), numbers.milliseconds,
            ("faster", "slower"),
        ),
        _throughput(record),
    ]  # fmt: skip
    energy = energy_card(record)
    shown = [*cards, *([energy] if energy else [])]
    return [
        card for card in shown if card.student != numbers.UNKNOWN or card.teacher != numbers.UNKNOWN
    ]


def energy_card(record: Record) -> Card | None:
    """Energy per inference, where it was measured and the record is complete."""
    teacher, student = pair(record, "energy", "total_j")
    if record.status != "complete" or (teacher is None and student is None):
        return None
    net = numbers.known(record.models.get("student"), "energy", "net_j")
    note = record.condition if net is None else f"{joules(net)} above idle; {record.condition}"
    return less_card("energy per inference", teacher, student, joules, ("less", "more"), note)


def _throughput(record: Record) -> Card:
    teacher, student = pair(record, "throughput_per_s")
    factor = numbers.ratio(student, teacher)
    tone = "even" if factor is None else "better" if factor > 1 else "worse"
    return Card(
        "throughput",
        per_second(student),
        per_second(teacher),
        numbers.times(factor, "more", "less"),
        tone,
        f"batch {record.data['modes']['batch']}",
    )


def _conditions(record: Record) -> list[Any]:
    data = record.data
    pairs = [("status", record.status), ("created", str(data["created"]))]
    shown = {key: value for key, value in data["modes"].items() if key != "versions"}
    pairs += [pair for key, value in shown.items() for pair in flat(key, value)]
    versions = [
        f"{name} {version}" for name, version in data["modes"]["versions"].items() if version
    ]
    pairs.append(("versions", ", ".join(versions)))
    overhead = numbers.known(data["harness"], "overhead_us")
    if overhead is not None:
        pairs.append(("harness, per call", f"{numbers.digits(overhead)}{numbers.THIN}µs"))
    for who in WHO:
        cov = numbers.known(record.models.get(who), "latency_ms", "cov")
        if cov is not None:
            pairs.append((f"coefficient of variation, {who}", numbers.share(cov)))
    meter = data.get("meter")
    if isinstance(meter, dict):
        pairs += [pair for key, value in meter.items() for pair in flat(key, value, "meter")]
    if data.get("energy_because"):
        pairs.append(("no energy", str(data["energy_because"])))
    seed = numbers.known(data.get("request"), "seed")
    if seed is not None:
        pairs.append(("seed", f"{seed:.0f}"))
    return pairs


def _layers(record: Record) -> list[Section]:
    """Times without the structure, which only the bundle knows."""
    if record.status == "invalid":
        return []
    return [Section("Layers", [table]) for table in [time_table(record.models)] if table.rows]


def _claim(record: Record) -> str:
    if record.status != "complete":
        return _STATUS[record.status]
    teacher, student = pair(record, "latency_ms", "p50")
    factor = numbers.ratio(teacher, student)
    if factor is None:
        who = "student" if teacher is None else "teacher"
        return f"Only the {who} was measured: {numbers.milliseconds(student or teacher)} in the median."
    ends = numbers.change_interval(record.data.get("speedup"), "interval95")
    span = f" ({numbers.within(ends, numbers.TIMES)})" if ends else ""
    return f"The student runs {numbers.times(factor, 'faster', 'slower')} in the median{span}."
