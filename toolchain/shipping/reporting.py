"""The end of the chain: both networks as they ship, tested, timed and compared with the goals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import accuracy, environment
from benchmarks.report import build_report, goal_rows, goals_met, summary_rows, write_report
from benchmarks.timing import latency
from deploy.bundle import Bundle
from deploy.sessions.ort import OrtCpuSession
from toolchain.recipe.files import portable
from toolchain.runs.artifacts import installed_versions
from toolchain.runs.training_logs import (
    FALLBACK,
    MOVED,
    never,
    record_of,
    trail_of,
    why_unmoved,
)
from toolchain.shipping.exporting import BUNDLE, numpy_batches
from toolchain.student import data_of

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.runs.artifacts import Artifact, RunContext
    from toolchain.stages import Report


def report(config: Report, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
    """Test both files as shipped, time them interleaved, and write the report."""
    data, recipe = data_of(ctx), ctx.recipe
    shutil.copytree(source.root / BUNDLE, out / BUNDLE)
    bundle = Bundle.open(out / BUNDLE)
    files = {"teacher": out / BUNDLE / "teacher.onnx", "student": bundle.model_path("ort-cpu")}
    with closing(OrtCpuSession(files["student"])) as session:
        bundle.verify_samples(session).require()
    top1 = {}
    for who, path in files.items():
        with closing(OrtCpuSession(path, threads=torch.get_num_threads())) as session:
            top1[who] = accuracy.evaluate(session, numpy_batches(data, data.test)).top1
    images_u8, _ = bundle.samples()
    with ExitStack() as opened:
        times = latency.measure_interleaved(
            {
                who: opened.enter_context(closing(OrtCpuSession(path, threads=1)))
                for who, path in files.items()
            },
            {bundle.manifest["input"]["name"]: bundle.preprocess(images_u8[:1])},
            at_least_s=config.latency_s,
            at_least=config.latency_runs,
        )
    sizes = {"teacher": source.find("teacher").metrics, "student": _last_measured(source)}
    numbers: dict[str, dict[str, Any]] = {
        who: {
            "top1": top1[who],
            "parameters": int(sizes[who]["parameters"]),
            "macs": int(sizes[who]["macs"]),
            "size_bytes": path.stat().st_size,
            "latency_ms": times[who].to_dict(),
            "onnx": path.relative_to(out).as_posix(),
        }
        for who, path in files.items()
    }
    chain = [*reversed([*source.lineage()])]
    settings = [portable(stage) for stage in recipe.stages]
    made = build_report(
        name=recipe.name,
        seed=ctx.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher=numbers["teacher"],
        student=numbers["student"],
        goals=recipe.goals.model_dump(exclude_none=True),
        stages=[
            _told(stage, setting)
            for stage, setting in zip(chain, settings, strict=False)  # not this one
        ],
        environment=environment.record(),
        notes=[
            *json.loads((source.root / "notes.json").read_text()),
            *(note for made in chain for note in notes_on_teaching(made)),
        ],
        method=[
            f"top-1: the files as shipped, on the {len(data.test)} test images, which nothing before "
            "this stage has read",
            f"latency: ONNX Runtime, one thread, batch 1, teacher and student in alternating blocks of "
            f"one run, at least {config.latency_s:g} s and {config.latency_runs} runs each",
            "MACs: multiplications of convolutions and linear layers of the network, one image",
            "bytes: the ONNX file",
            *_other_targets(recipe),
        ],
        versions=installed_versions(),
        bundle=BUNDLE,
        data_fingerprint=data.fingerprint,
        recipe=portable(recipe),
    )
    write_report(made, out)
    return {"top1": numbers["student"]["top1"], "top1_teacher": numbers["teacher"]["top1"]}


def _told(made: Artifact, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of a stage."""
    record = record_of(made)
    log = {"log": _log_name(made)} if _logs(made) else {}
    return {
        "name": made.stage,
        "seconds": record["seconds"],
        "metrics": record["metrics"],
        "config": config,
        **log,
    }


def _other_targets(recipe: Recipe) -> list[str]:
    others = [target for target in recipe.targets if target != "ort-cpu"]
    if not others:
        return []
    return [
        f"the student's numbers are those of its graph for ort-cpu; {', '.join(others)}: see bundle"
    ]


def notes_on_teaching(artifact: Artifact) -> list[str]:
    """What a reader has to know of a dean that set a stage's strengths, or did not."""
    notes = []
    for log in _logs(artifact):
        trail = trail_of(log)
        fallback, left_out = trail.get(FALLBACK), never(trail)
        if fallback is not None and fallback.last > 0:
            notes.append(
                f"{artifact.stage}: at the end {fallback.last:.0%} of the dean's strengths were the "
                "recipe's, for want of evidence that moving them helps"
            )
        if MOVED in left_out:
            why, _ = why_unmoved(left_out)
            notes.append(
                f"{artifact.stage}: the dean never moved a strength from the recipe's: {why}"
            )
    return notes


def _last_measured(artifact: Artifact) -> Mapping[str, float]:
    """Numbers of the last stage that changed the network."""
    return next(made.metrics for made in artifact.lineage() if "macs" in made.metrics)


def present(last: Artifact, recipe: Recipe, out: Path, allow_missed: bool) -> int:
    """Lay the report out in ``out/<name>-<key>``, print the table, and return the exit status."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if last.stage != "report":
        console.print(f"{recipe.name}: the chain ends with {last.stage}: {last.root}")
        return 0
    folder = out / f"{recipe.name}-{last.key[:8]}"
    if not folder.exists():
        scratch = out / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(last.root, scratch, ignore=shutil.ignore_patterns("artifact.json"))
        _collect_logs(last, scratch)
        scratch.rename(folder)
    record: dict[str, Any] = json.loads((folder / "report.json").read_text())
    table = Table(title=f"{recipe.name} (seed {record['seed']})", title_justify="left")
    for column, justify in (
        ("", "left"),
        ("teacher", "right"),
        ("student", "right"),
        ("change", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in summary_rows(record):
        table.add_row(*row)
    console.print(table)
    for row in goal_rows(record):
        console.print("  ".join(row), highlight=False)
    console.print(
        f"bundle  {folder / BUNDLE}\nreport  {folder / 'report.md'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if allow_missed or goals_met(record) else 1


def _collect_logs(last: Artifact, folder: Path) -> None:
    """Training logs of every stage beside the report."""
    for made in last.lineage():
        for log in _logs(made):
            (folder / "logs").mkdir(exist_ok=True)
            shutil.copyfile(log, folder / "logs" / _log_name(made))


def _logs(made: Artifact) -> list[Path]:
    """Of the stage's training: one, or none."""
    return sorted(made.root.glob("*.metrics.jsonl"))


def _log_name(made: Artifact) -> str:
    """What the stage's log is called beside the report."""
    return f"{made.stage}-{made.key[:8]}.jsonl"
