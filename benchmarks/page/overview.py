"""What comes before the articles: all networks in one table, and where they lie between accuracy and cost."""

from __future__ import annotations

from typing import Any, Mapping, Sequence, Tuple

from benchmarks.page import numbers
from benchmarks.page.blocks import Article, Block, Cell, Column, Figures, Section, Table
from benchmarks.page.charts.style import STUDENT, TEACHER, series_style
from benchmarks.page.pareto import SIZE, Candidate, pareto_figures
from benchmarks.page.reading import Record, Run, counted
from benchmarks.page.record_tables import records_table
from benchmarks.page.run_article import goals_of

Named = Tuple[str, str, Run]  # anchor, name on this page, run


def names_of(runs: Sequence[Run], records: Sequence[Record]) -> list[str]:
    """A name for each, told apart by seed, conditions or folder where two have one name."""
    plain = [str(run.report["name"]) for run in runs] + [record.bundle for record in records]
    finer = [f"{run.report['name']}, seed {run.report['seed']}" for run in runs]
    finer += [f"{record.bundle}, {record.condition}" for record in records]
    places = [run.folder.name for run in runs] + [record.path.stem for record in records]
    names = []
    for index, name in enumerate(plain):
        if plain.count(name) > 1:
            name = finer[index]
        if finer.count(name) > 1:
            name = f"{name}, {places[index]}"
        names.append(name)
    return names


def overview(named: Sequence[Named], records: Sequence[tuple[str, str, Record]]) -> Article:
    """The first article of a page with several."""
    judged = [run for _, _, run in named if goals_of(run.report)]
    missed = sum(any(not goal.met for goal in goals_of(run.report)) for run in judged)
    measured = [(anchor, record) for anchor, _, run in named for record in run.records]
    measured += [(anchor, record) for anchor, _, record in records]
    blocks: list[Block] = [_run_table(named)] if named else []
    if measured:
        blocks.append(records_table(measured))
    bad = sum(record.status != "complete" for _, record in measured)
    verdict, tone = "no goal was set" if named else "measured", "quiet"
    if missed:
        verdict, tone = f"{missed} of {len(named)} runs missed a goal", "bad"
    elif bad:
        verdict, tone = f"{bad} of {len(measured)} records not usable", "bad"
    elif judged:
        verdict, tone = "no goal was missed", "good"
    counts = [counted(len(named), "run")] if named else []
    counts += [counted(len(measured), "record")] if measured else []
    sections = [Section("", blocks), *trade_off(named)]
    return Article("overview", "Comparison", " and ".join(counts), verdict, tone, "", sections)


def trade_off(named: Sequence[Named]) -> list[Section]:
    """Accuracy against latency, energy and size; nothing where accuracy is not known."""
    figures = pareto_figures(_candidates(named), students=min(2, len(named)))
    intro = "Up and to the left is better. The shaded region is beaten by a network on the front."
    return [Section("Accuracy against cost", [Figures(figures)], intro)] if figures else []


def _candidates(named: Sequence[Named]) -> list[Candidate]:
    teachers = {_teacher(run): None for _, _, run in named}
    candidates = []
    for index, (_, name, run) in enumerate(named):
        which = list(teachers).index(_teacher(run)) + 1
        group = "teacher" if len(teachers) == 1 else f"teacher {which}"
        candidates.append(
            Candidate(f"teacher of {name}" if len(named) > 1 else "teacher", group, TEACHER,
                      numbers.known(run.report["teacher"], "top1"), _costs(run, "teacher"))
        )  # fmt: skip
        shown = name if len(named) > 1 else "student"
        style = series_style(index) if len(named) > 1 else STUDENT
        accuracy = numbers.known(run.report["student"], "top1")
        candidates.append(Candidate(shown, shown, style, accuracy, _costs(run, "student")))
    return candidates


def _teacher(run: Run) -> tuple[Any, ...]:
    """What tells teachers apart."""
    teacher = run.report["teacher"]
    return (
        run.report.get("data_fingerprint"),
        teacher.get("top1"),
        teacher.get("parameters"),
        teacher.get("macs"),
    )


def _costs(run: Run, who: str) -> Mapping[tuple[str, str], float]:
    network = run.report[who]
    machine = run.report["environment"].get("cpu_model") or run.report["environment"].get("system")
    costs: dict[tuple[str, str], float | None] = {
        (SIZE, ""): numbers.known(network, "size_bytes"),
        ("latency", f"{machine or 'one machine'}, by each run itself"): numbers.known(
            network, "latency_ms", "p50"
        ),
    }
    for record in run.records:
        if record.status == "complete":
            model = record.models.get(who)
            costs[("latency", record.condition)] = numbers.known(model, "latency_ms", "p50")
            costs[("energy", record.condition)] = numbers.known(model, "energy", "total_j")
    return {key: value for key, value in costs.items() if value is not None and value > 0}


def _run_table(named: Sequence[Named]) -> Table:
    columns = [
        Column("run"),
        Column("goals"),
        Column("seed", True),
        Column("top-1", True),
        Column("change", True),
        Column("latency, median", True),
        Column("faster", True),
        Column("size", True),
        Column("MACs", True),
    ]
    rows = []
    for anchor, name, run in named:
        teacher, student = run.report["teacher"], run.report["student"]
        change = _difference(numbers.known(student, "top1"), numbers.known(teacher, "top1"))
        p50 = numbers.known(student, "latency_ms", "p50")
        faster = numbers.ratio(numbers.known(teacher, "latency_ms", "p50"), p50)
        size, macs = numbers.known(student, "size_bytes"), numbers.known(student, "macs")
        goals = goals_of(run.report)
        missed = [goal.label for goal in goals if not goal.met]
        said = f"MISSED: {', '.join(missed)}" if missed else "all met" if goals else "none set"
        rows.append([
            Cell(name, link=anchor),
            Cell(said, len(missed), tone="bad" if missed else "good" if goals else "quiet"),
            Cell(str(run.report["seed"]), run.report["seed"]),
            Cell(numbers.percent(numbers.known(student, "top1")), numbers.known(student, "top1")),
            Cell(numbers.points(change), change),
            Cell(numbers.milliseconds(p50), p50),
            Cell(numbers.times(faster, "", "slower").strip(), faster),
            Cell(numbers.scaled(size, "B"), size),
            Cell(numbers.scaled(macs, ""), macs),
        ])  # fmt: skip
    return Table(columns, rows, "Students, each against its own teacher.")


def _difference(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else round(value - reference, 9)
