"""An analysis in words and tables: Markdown for a file, and the same tables for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.statistics.student_t import mean_interval
from toolchain.analysis.drawing import controllers_svg, distillability_svg, sparsability_svg
from toolchain.analysis.probing import Probed
from toolchain.analysis.record import Analysis
from toolchain.analysis.sparsities import Damage
from toolchain.runs.artifacts import installed_versions
from toolchain.runs.markdown import bullets, hardware, markdown_table, versions

MOST_TIMES, MOST_SHOWN = 6, 3  # columns of a table: on the page, on a terminal
RESULT, PAGE = "analysis.json", "analysis.md"
DISTILLABILITY, BY_TERM, BY_CONTROLLER = "distillability.svg", "terms.svg", "controllers.svg"
UNDER = "Distillability under each controller, mean over the layers"


def write(analysis: Analysis, out: Path) -> None:
    """The analysis as JSON, Markdown and drawings in ``out``."""
    made = environment.record() | {"versions": installed_versions()}
    record = analysis.to_dict() | {"environment": made}
    (out / RESULT).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / PAGE).write_text(markdown(analysis, made), encoding="utf-8")
    drawings = {
        DISTILLABILITY: distillability_svg(analysis.seen, "layers"),
        BY_TERM: distillability_svg(analysis.seen, "terms"),
    }
    if analysis.others:
        drawings[BY_CONTROLLER] = controllers_svg(analysis.by_controller)
    drawings |= {
        _drawing(when): sparsability_svg(found, when)
        for when, found in analysis.sparsability.items()
    }
    for name, drawn in drawings.items():
        (out / name).write_text(drawn, encoding="utf-8")


def read(folder: Path) -> Analysis:
    """The analysis that ``write`` put there."""
    return Analysis.from_dict(json.loads((folder / RESULT).read_text(encoding="utf-8")))


Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables(analysis: Analysis, most: int = MOST_TIMES, *, brief: bool = False) -> list[Table]:
    """Title, head and rows of each table that has something to say.

    Args:
        most: Times in the tables of distillability.
        brief: Whether costs of sparsity go without their intervals.
    """
    made = []
    for title, what in (("by layer", "layers"), ("by term, at its own spot", "terms")):
        head, rows = _cosines(analysis.seen, what, most)
        if rows:
            made.append((f"Distillability {title}", head, rows))
    if analysis.others:
        made.append((UNDER, *_means(analysis.by_controller, most)))
    for when, found in analysis.sparsability.items():
        made.append((f"Sparsability {when}", *_damages(found, brief)))
    return made


def markdown(analysis: Analysis, environment: Mapping[str, Any]) -> str:
    """The whole page."""
    record = {"environment": environment}
    sparsability = []
    if analysis.images:
        sparsability.append(
            "sparsability: rise of the loss (nats) and change of top-1 (points) on "
            f"{analysis.images:,} held-out images when channels of least {analysis.importance} go from one "
            "group alone, before any recovery"
        )
    header = [
        f"stage: {analysis.stage}, seed {analysis.seed}; distilled: {analysis.distilled}",
        f"distillability: cosine of the distillation gradient and the task gradient, {analysis.probes}, "
        "with the half width of the 95 % interval of the mean over them",
        *sparsability,
        "p-values: of the rank correlation over layers, if their order meant nothing; layers share much of "
        "their gradients, so they say less than as many independent ones",
        f"hardware: {hardware(record)}",
        f"versions: {versions(record)}",
        *([f"written by: `{analysis.command}`"] if analysis.command else []),
    ]
    drawn = {
        "Distillability by layer": DISTILLABILITY,
        "Distillability by term, at its own spot": BY_TERM,
        UNDER: BY_CONTROLLER,
        **{f"Sparsability {when}": _drawing(when) for when in analysis.sparsability},
    }
    if analysis.others:
        header.insert(
            1,
            f"controllers: the same training from the same start under {', '.join(analysis.others)} too; "
            "strengths are fixed where none is named; probe batches are of images that all train on",
        )
    parts = [f"# Analysis: {analysis.recipe}", bullets(header)]
    parts += ["## What was seen", bullets(analysis.sentences())]
    for title, head, rows in tables(analysis):
        parts.append(f"## {title}")
        if title in drawn:
            parts.append(f"![{title}]({drawn[title]})")
        parts.append(markdown_table(head, rows))
    return "\n\n".join(parts) + "\n"


def show(analysis: Analysis) -> None:
    """Print the tables and what was seen to standard output."""
    from rich.console import Console
    from rich.table import Table as Shown

    console = Console()
    for title, head, rows in tables(analysis, MOST_SHOWN, brief=True):
        shown = Shown(title=title, title_justify="left")
        for number, column in enumerate(head):
            shown.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    if analysis.sparsability:
        console.print("Sparsability: rise of the loss in nats, change of top-1 in points.")
    for sentence in analysis.sentences():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _drawing(when: str) -> str:
    return f"sparsability-{when.replace(' ', '-')}.svg"


def _cosines(
    seen: Sequence[Probed], what: str, most: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    times = _times(seen, most)
    names = dict.fromkeys(name for probed in times for name in getattr(probed, what))
    head = (what.removesuffix("s"), *(f"step {probed.step:,}" for probed in times))
    rows = [
        (name, *(_cell(getattr(probed, what).get(name, ())) for probed in times)) for name in names
    ]
    return head, rows


def _means(
    by_controller: Mapping[str, Sequence[Probed]], most: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each controller: the mean over the layers, at a few of the steps of the first."""
    steps = [probed.step for probed in _times(next(iter(by_controller.values())), most)]
    rows = []
    for name, seen in by_controller.items():
        found = {probed.step: probed.over_layers() for probed in seen}
        rows.append((name, *(_cell(found.get(step, ())) for step in steps)))
    return ("controller", *(f"step {step:,}" for step in steps)), rows


def _times(seen: Sequence[Probed], most: int) -> list[Probed]:
    """At most so many, evenly spread, the first and the last among them."""
    last, count = len(seen) - 1, min(len(seen), most)
    return [seen[round(n * last / max(1, count - 1))] for n in range(count)]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    interval = mean_interval(values)
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.3f}"
    return f"{sum(values) / len(values):+.3f}{half}"


def _damages(found: Sequence[Damage], brief: bool) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Rise of the loss in nats and change of top-1 in points."""
    sparsities = sorted({each.sparsity for each in found})
    head = ("group", "channels", *(f"{sparsity:.0%} gone" for sparsity in sparsities))
    groups: dict[str, dict[float, Damage]] = {}
    for each in found:
        groups.setdefault(each.group, {})[each.sparsity] = each
    rows = []
    for name, each_of in groups.items():
        cells = []
        for one in (each_of[sparsity] for sparsity in sparsities):
            half = (one.loss_interval[1] - one.loss_interval[0]) / 2
            spread = "" if brief else f" ± {half:.3f}"
            cells.append(f"{one.loss:+.3f}{spread}, {one.top1:+.1f}")
        rows.append((name, str(next(iter(each_of.values())).channels), *cells))
    return head, rows
