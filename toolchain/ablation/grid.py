"""A whole ablation: every variant with every seed, resumed where it stopped, told as it goes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import environment
from deploy.errors import CompressDeployError, ConfigError
from deploy.whole_file import require_writable, write_whole
from toolchain.ablation.findings import Ablation
from toolchain.ablation.outcome import Outcome
from toolchain.ablation.table import HEAD, markdown, rows
from toolchain.ablation.variants import Variant, recipe_of
from toolchain.ablation.workers import Failure, Finished, Job, run_here, run_in_processes
from toolchain.distillation.preflight import Preflight
from toolchain.runs.artifacts import installed_versions
from toolchain.training.progress import Progress, duration

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe

# A run that takes less than this share of the longest was found, and says nothing about those to come.
FOUND_SHARE = 0.2
TABLE, REMEDY = "the ablation's table", "free some space or name another place"


def jobs_of(
    path: Path, overrides: Sequence[str], variants: Sequence[Variant], seeds: Sequence[int]
) -> list[Job]:
    """Every run, all variants of a seed before the next seed: what is finished early can be compared.

    Raises:
        ConfigError: A variant does not fit the recipe, its networks or its data; found before anything
            runs.
        DataError: The data cannot be read, or not be divided as a variant asks.
    """
    jobs = [
        Job(variant.name, seed, recipe_of(path, overrides, variant, seed))
        for seed in seeds
        for variant in variants
    ]
    preflight = Preflight()
    for job in jobs[: len(variants)]:  # a seed changes neither modules nor sizes
        try:
            preflight.check(job.recipe)
        except CompressDeployError as error:
            raise type(error)(f"variant {job.variant}: {error}") from None
    return jobs


def run_grid(
    recipe: Recipe,
    jobs: Sequence[Job],
    variants: Sequence[Variant],
    *,
    baselines: Sequence[str],
    at_once: int,
    out: Path,
    table: Path | None,
    command: str,
    progress: Progress,
) -> Ablation:
    """Run the jobs, and write after each what is known by then.

    The page goes to ``table`` and, with all numbers as JSON, to ``out/<recipe>.ablation.*``.

    Raises:
        StorageError: A page cannot be written; where that shows before the first run, none is begun.
    """
    for path in _pages(recipe.name, out, table):
        require_writable(path, TABLE, REMEDY)
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    ablation = Ablation(
        recipe=recipe.name,
        title=recipe.data.title or recipe.data.kind,
        variants=variants,
        seeds=seeds,
        baselines=baselines,
        outcomes=(),
        failures=(),
        at_once=min(at_once, len(jobs)),
        command=command,
        environment=environment.record(),
        installed=installed_versions(),
    )
    progress.say(_announcement(ablation, jobs, out))
    if ablation.at_once > 1 and recipe.structure.allocation == "latency":
        progress.say(
            "structure.allocation is latency, and its times are measured while other runs share the machine; "
            "with --jobs 1 --seeds 1 first they are measured in peace, and found by every later run"
        )
    teller = _Teller(len(jobs), ablation.at_once, progress)
    if ablation.at_once == 1:
        finished = run_here(jobs, out, progress)
    else:
        finished = run_in_processes(jobs, out, ablation.at_once, _threads(ablation.at_once))
    for one in finished:
        teller.tell(one)
        if isinstance(one.result, Failure):
            ablation = replace(ablation, failures=(*ablation.failures, one.result))
        else:
            ablation = replace(ablation, outcomes=(*ablation.outcomes, one.result))
        _write(ablation, out, table)
    return ablation


def check_seeds(first: int, count: int) -> list[int]:
    """The seeds of ``count`` runs.

    Raises:
        ConfigError: They end beyond the largest seed.
    """
    if first + count > 2**32:
        raise ConfigError(
            f"--seeds: {count} seeds from {first} on end beyond {2**32 - 1}; accepted are seeds up to "
            "that; set a smaller seed"
        )
    return list(range(first, first + count))


def show(ablation: Ablation) -> None:
    """Print the table and what it shows to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{ablation.recipe}: {counted(ablation.variants, 'variant')}, {counted(ablation.seeds, 'seed')}"
    shown = Table(title=title, title_justify="left")
    for column in ("variant", "n", "test, %", "validation, %", "MACs", "steps", "seconds"):
        shown.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    for row in rows(ablation):
        of = dict(zip(HEAD, row, strict=True))
        shown.add_row(*(of[name] for name in _SHOWN))
    console.print(shown)
    for sentence in ablation.sentences():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


_SHOWN = ("variant", "n", "test top-1, %", "validation top-1, %", "MACs", "steps", "seconds")


def _announcement(ablation: Ablation, jobs: Sequence[Job], out: Path) -> str:
    names = ", ".join(variant.name for variant in ablation.variants)
    together = ""
    if ablation.at_once > 1:
        together = f", {ablation.at_once} at a time, each with a log in {out / 'logs'}"
    return (
        f"{counted(jobs, 'run')} of {ablation.recipe} into {out}{together}: {names}; "
        f"{counted(ablation.seeds, 'seed')}"
    )


def counted(things: Sequence[object], noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


class _Teller:
    """Says after each run how it went, and about how long the rest takes."""

    def __init__(self, total: int, at_once: int, progress: Progress) -> None:
        self._total, self._at_once, self._progress = total, at_once, progress
        self._done, self._all_s = 0, list[float]()

    def tell(self, one: Finished) -> None:
        self._done += 1
        if isinstance(one.result, Outcome):
            self._all_s.append(one.seconds)
        result = one.result
        if isinstance(result, Failure):
            how = f"FAILED: {result.reason}"
        else:
            how = f"test {result.test_top1:.2f} %, validation {result.validation_top1:.2f} %"
        left = self._total - self._done
        eta = ""
        if left and self._all_s:
            made_s = [each for each in self._all_s if each >= FOUND_SHARE * max(self._all_s)]
            mean_s = sum(made_s) / len(made_s)
            eta = f", {left} left, about {duration(mean_s * left / self._at_once)}"
        self._progress.say(
            f"{self._done}/{self._total} {result.variant}, seed {result.seed}: {how} "
            f"({duration(one.seconds)}{eta})"
        )


def _threads(at_once: int) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (usable or 1) // at_once)


def _pages(recipe: str, out: Path, table: Path | None) -> set[Path]:
    """Where the table goes: beside the artifacts, and where it was asked for."""
    page = out / f"{recipe}.ablation.md"
    return {page, table or page}


def _write(ablation: Ablation, out: Path, table: Path | None) -> None:
    record = {
        "recipe": ablation.recipe,
        "variants": {variant.name: variant.overrides for variant in ablation.variants},
        "seeds": ablation.seeds,
        "baselines": ablation.baselines,
        "runs": [outcome.to_dict() for outcome in ablation.outcomes],
        "failures": [vars(failure) for failure in ablation.failures],
        "differences": [
            {
                "variant": one.name,
                "baseline": one.baseline,
                "points": one.mean,
                "interval95": one.interval,
                "by_seed": one.by_seed,
                "n": one.n,
                "finding": one.finding,
            }
            for one in ablation.comparisons()
        ],
        "shows": ablation.sentences(),
        "at_once": ablation.at_once,
        "command": ablation.command,
        "versions": ablation.installed,
        "environment": ablation.environment,
    }
    text = json.dumps(record, indent=2) + "\n"
    write_whole(out / f"{ablation.recipe}.ablation.json", text, "the ablation's numbers", REMEDY)
    page = markdown(ablation)
    for path in _pages(ablation.recipe, out, table):
        write_whole(path, page, TABLE, REMEDY)
