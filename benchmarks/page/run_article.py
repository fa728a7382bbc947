"""The article about one run: its result, goals, layers, training, chain, method and machine."""

from __future__ import annotations

import json
from typing import Any, Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import (
    Article,
    Block,
    Cards,
    Cell,
    Column,
    Facts,
    Figures,
    Flag,
    Flags,
    Goal,
    Goals,
    Lines,
    Section,
    Table,
)
from benchmarks.page.comparison import (
    accuracy_card,
    accuracy_row,
    comparison_table,
    latency_rows,
    less_card,
    less_row,
    sentence,
)
from benchmarks.page.facts import environment_blocks
from benchmarks.page.latency_figures import latency_figures
from benchmarks.page.layer_table import layer_table
from benchmarks.page.layers import Layer, read_layers
from benchmarks.page.reading import Record, Run, mapping
from benchmarks.page.record_sections import energy_card, record_flags, record_sections
from benchmarks.page.record_tables import records_table
from benchmarks.page.stage_sections import chain_section, training_section
from benchmarks.report import GOALS, goal_rows
from deploy.errors import StorageError


def run_article(run: Run, anchor: str, name: str, trade_off: Sequence[Section] = ()) -> Article:
    """``trade_off`` is shown after the result where the page has no overview for it."""
    report = run.report
    goals = goals_of(report)
    missed = [goal.label for goal in goals if not goal.met]
    verdict, tone = "no goal was set", "quiet"
    if missed:
        verdict, tone = f"{len(missed)} of {len(goals)} goals missed", "bad"
        if len(goals) == 1:
            verdict = "the goal is missed"
    elif goals:
        verdict, tone = "every goal met" if len(goals) > 1 else "the goal is met", "good"
    blocks: list[Block] = [Cards(_cards(run))]
    if goals:
        blocks.append(Goals(goals))
    flags = _flags(run)
    if flags:
        blocks.append(Flags(flags))
    sections = [
        Section("", blocks),
        Section("Every number", [comparison_table(_rows(report))]),
        *trade_off,
    ]
    usable = [record for record in run.records if record.status == "complete"]
    if not usable:
        figures = latency_figures(report)
        if figures:
            sections.append(Section("Latency", [Figures(figures, full=True)]))
    if len(run.records) > 1:
        table = records_table([(anchor, record) for record in run.records])
        sections.append(Section("Measurements", [table]))
    conditions = [record.condition for record in run.records]
    for record in run.records:
        sections += record_sections(record, dated=conditions.count(record.condition) > 1)
    sections += _layers(run, usable)
    sections += training_section(run)
    sections += chain_section(report)
    sections += _proof(run)
    sections += _method(run)
    sections.append(
        Section(
            "Where it was measured",
            environment_blocks(report["environment"], mapping(report.get("versions"))),
        )
    )
    return Article(
        anchor,
        name,
        _subtitle(report),
        verdict,
        tone,
        sentence(report["teacher"], report["student"]),
        [section for section in sections if section.blocks],
    )


def goals_of(report: Mapping[str, Any]) -> list[Goal]:
    """Every goal that was asked, met or not, in words and as a bar."""
    goals = []
    for name, goal in report["goals"].items():
        if name in GOALS:
            ((label, asked_text, reached_text, _),) = goal_rows({"goals": {name: goal}})
        else:
            label, asked_text, reached_text = name, f"{goal['asked']}", f"{goal['reached']}"
        asked, reached = numbers.known(goal, "asked"), numbers.known(goal, "reached")
        track = max(abs(asked or 0.0), reached or 0.0) * 1.15 or 1.0
        fill = 0.0 if reached is None else 100 * max(0.0, reached) / track
        limit = 100 * max(0.0, asked or 0.0) / track
        goals.append(
            Goal(label, _thin(asked_text), _thin(reached_text), goal["met"] is True, fill, limit)
        )
    return goals


def _thin(text: str) -> str:
    return text.replace(" ms", f"{numbers.THIN}ms").replace("%", f"{numbers.THIN}%")


def _subtitle(report: Mapping[str, Any]) -> str:
    data = mapping(report["recipe"].get("data"))
    facts = [f"seed {report['seed']}"]
    if data.get("title"):
        facts.append(str(data["title"]))
    targets = report["recipe"].get("target")
    if targets:
        facts.append(f"for {', '.join(targets) if isinstance(targets, list) else targets}")
    if report.get("date"):
        facts.append(str(report["date"]).partition("T")[0])
    return ", ".join(facts)


def _cards(run: Run) -> list[Any]:
    teacher, student = run.report["teacher"], run.report["student"]

    def pair(*path: str) -> tuple[float | None, float | None]:
        return numbers.known(teacher, *path), numbers.known(student, *path)

    calls = numbers.known(student, "latency_ms", "n")
    cards = [
        accuracy_card(*pair("top1"), note="of the files as shipped, on test data"),
        less_card(
            "median latency", *pair("latency_ms", "p50"), numbers.milliseconds,
            ("faster", "slower"),
            "" if calls is None else f"n{numbers.THIN}={numbers.THIN}{numbers.grouped(calls)} calls",
        ),
        less_card(
            "size of the file", *pair("size_bytes"), lambda value: numbers.scaled(value, "B"),
            ("smaller", "larger"), "ONNX, as shipped",
        ),
        less_card(
            "MACs", *pair("macs"), lambda value: numbers.scaled(value, ""),
            ("fewer", "more"), "multiplications of one input",
        ),
    ]  # fmt: skip
    energy = next((card for card in map(energy_card, run.records) if card is not None), None)
    return cards if energy is None else [*cards, energy]


def _rows(report: Mapping[str, Any]) -> list[Any]:
    teacher, student = report["teacher"], report["student"]
    rows = [accuracy_row(numbers.known(teacher, "top1"), numbers.known(student, "top1"))]
    for label, name, better in (
        ("parameters", "parameters", ("fewer", "more")),
        ("MACs", "macs", ("fewer", "more")),
        ("bytes on disk", "size_bytes", ("smaller", "larger")),
    ):
        rows.append(
            less_row(
                label, numbers.known(teacher, name), numbers.known(student, name),
                numbers.grouped, better,
            )
        )  # fmt: skip
    return [*rows, *latency_rows({"teacher": teacher, "student": student})]


def _flags(run: Run) -> list[Flag]:
    report = run.report
    flags = [flag for record in run.records for flag in record_flags(record)]
    verified = mapping(mapping(run.manifest.get("details")).get("verified"))
    for who, check in verified.items():
        if isinstance(check, dict) and check.get("passed") is False:
            flags.append(
                Flag(
                    "bad",
                    "Not verified",
                    f"the {who}'s file does not compute what its network computes.",
                )
            )
    for log in run.logs:
        if log.unreadable:
            flags.append(
                Flag("warn", "Log", f"{log.unreadable} lines of {log.stage}'s log are unreadable.")
            )
    flags += [Flag("note", "Note", str(note)) for note in report.get("notes") or ()]
    return sorted(flags, key=lambda flag: ("bad", "warn", "note").index(flag.tone))


def _layers(run: Run, records: Sequence[Record]) -> list[Section]:
    layers = bundle_layers(run)
    if not layers:
        return []
    timed = next((record.models for record in records if _has_layers(record)), {})
    return [Section("Layers", [layer_table(layers, timed)])]


def _has_layers(record: Record) -> bool:
    return any(isinstance(model, dict) and model.get("layers") for model in record.models.values())


def bundle_layers(run: Run) -> list[Layer]:
    """Nothing where the folder came without its bundle, as when only reports were copied.

    Raises:
        StorageError: The bundle's spec cannot be read.
    """
    files = [run.folder / str(run.report[who].get("onnx") or "") for who in ("teacher", "student")]
    if not run.manifest or not all(path.is_file() for path in files):
        return []
    path = run.bundle / "student" / "spec.json"
    spec: Any = {}
    if path.is_file():
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path}: cannot be read ({' '.join(str(error).split())}); accepted is a bundle as it "
                "was written; copy the run again"
            ) from error
    kernels = mapping(mapping(run.manifest.get("details")).get("kernels"))
    return read_layers(files[0], files[1], mapping(spec), kernels)


def _proof(run: Run) -> list[Section]:
    """Whether each file computes what its network computed, as export found it."""
    rows = []
    for who, check in mapping(mapping(run.manifest.get("details")).get("verified")).items():
        count = numbers.known(check, "rows")
        equal = numbers.ratio(numbers.known(check, "agreeing"), count)
        change = numbers.known(check, "points")
        passed = mapping(check).get("passed")
        failed = passed is False
        verdict = "verified" if passed else "FAILED" if failed else "measured, without a verdict"
        rows.append(
            [
                Cell(str(who)),
                Cell(verdict, tone="bad" if failed else "good" if passed else "quiet"),
                Cell(numbers.grouped(count), count),
                Cell(numbers.share(equal, 2), equal),
                Cell(numbers.points(change), change),
                Cell(numbers.digits(numbers.known(check, "max_abs"))),
            ]
        )
    if not rows:
        return []
    titles = ("inputs", "same decisions", "change in top-1", "largest difference")
    columns = [Column("file"), Column(""), *(Column(title, True) for title in titles)]
    intro = "Each file was compared with the network that it was exported from."
    return [Section("Proof of the export", [Table(columns, rows)], intro)]


def _method(run: Run) -> list[Section]:
    blocks: list[Block] = []
    if run.report.get("method"):
        blocks.append(Lines([str(line) for line in run.report["method"]]))
    seeds = [("run", str(run.report["seed"]))]
    seeds += [
        (name, str(seed))
        for name, seed in mapping(run.manifest.get("seeds")).items()
        if name != "run"
    ]
    facts = [("seeds", ", ".join(f"{name} {seed}" for name, seed in seeds))]
    if run.report.get("data_fingerprint"):
        facts.append(("fingerprint of the data", str(run.report["data_fingerprint"])[:16]))
    blocks.append(Facts(facts))
    return [Section("How it was measured", blocks)]
