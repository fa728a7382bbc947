"""The chain of stages: how training went, how long each stage took, and what it measured."""

from __future__ import annotations

import math
from typing import Any, Mapping

from benchmarks.page import numbers
from benchmarks.page.blocks import (
    FULL,
    NARROW,
    Block,
    Cell,
    Column,
    Figure,
    Figures,
    Flag,
    Flags,
    Section,
    Table,
)
from benchmarks.page.charts.timeline import Bar, Timeline
from benchmarks.page.facts import flat
from benchmarks.page.reading import Run, mapping
from benchmarks.page.trail_figures import fallbacks, trail_figures, unmoved
from benchmarks.page.training_figures import training_figures


def training_section(run: Run) -> list[Section]:
    """Curves of the stages that train, and what was decided at every step; nothing without logs."""
    named = (stage for stage in run.report["stages"] if stage.get("name") == "teacher")
    teacher: Mapping[str, Any] = next(named, {})
    figures = training_figures(run.logs, numbers.known(teacher, "metrics", "validation_top1"))
    if not figures:
        return trail_section(run)
    untrained = [
        str(stage.get("name"))
        for stage in run.report["stages"]
        if str(stage.get("name")) not in {log.stage for log in run.logs}
    ]
    intro = "Stages one after another, each with its own steps, short ones drawn wider."
    stages = [log.stage for log in run.logs]
    if len(set(stages)) < len(stages) and not any("log" in one for one in run.report["stages"]):
        intro += " In which order those of one name ran, this older report does not say."
    if untrained:
        intro += f" In the gaps are stages that train nothing ({', '.join(untrained)})."
    return [Section("Training", [Figures(figures)], intro), *trail_section(run)]


def trail_section(run: Run) -> list[Section]:
    """Strengths and what set them, step by step, where a stage wrote them down."""
    figures = trail_figures(run.logs)
    if not figures:
        return []
    steps = sum(max(found.count for found in log.trail.values()) for log in run.logs if log.trail)
    blocks: list[Block] = [Figures(figures)]
    flags = [
        *(Flag("warn", "Fallback", line) for line in fallbacks(run.logs)),
        *(Flag("warn", "Not moved", line) for line in unmoved(run.logs)),
    ]
    if flags:
        blocks.insert(0, Flags(flags))
    intro = (
        f"What was written down of every step, {numbers.grouped(steps)} in all. Where steps are closer "
        "than can be seen, the line is their mean and the shade reaches from the lowest to the highest."
    )
    return [Section("Strengths, step by step", blocks, intro)]


def chain_section(report: Mapping[str, Any]) -> list[Section]:
    """How long each stage took and what it measured."""
    bars = []
    for stage in report["stages"]:
        seconds = numbers.known(stage, "seconds")
        bars.append(Bar(str(stage.get("name")), seconds or 0.0, numbers.duration(seconds)))
    if not bars:
        return []
    total = math.fsum(bar.seconds for bar in bars)
    chart = Timeline(
        "The chain of stages",
        "; ".join(f"{bar.name} {bar.shown}" for bar in bars),
        bars,
    )
    figure = Figure(
        f"The chain, {numbers.duration(total)} in all", chart.svg(FULL), chart.svg(NARROW)
    )
    rows = []
    for stage in report["stages"]:
        seconds = numbers.known(stage, "seconds")
        measured = ", ".join(
            f"{name} {value}"
            for key, item in mapping(stage.get("metrics")).items()
            for name, value in flat(key, item)
        )
        rows.append(
            [Cell(str(stage.get("name"))), Cell(numbers.duration(seconds), seconds), Cell(measured)]
        )
    table = Table([Column("stage"), Column("time", True), Column("what it measured")], rows)
    return [Section("Stages", [Figures([figure], full=True), table])]
