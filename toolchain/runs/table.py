"""A table of finished runs in Markdown: a row per recipe, over its seeds, computed from the reports."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import methodcaller
from pathlib import Path
from typing import Any

from deploy.errors import ConfigError
from deploy.whole_file import write_whole
from toolchain.runs.finished import PERCENTILES, Run, read_runs
from toolchain.runs.markdown import (
    bullets,
    each,
    hardware,
    markdown_table,
    mean,
    shown_path,
    spread,
    versions,
)


@dataclass(frozen=True)
class Recipe:
    """Runs of one recipe that differ in their seed only, in its order."""

    name: str
    runs: tuple[Run, ...]

    def values(self, number: Callable[[Run], float]) -> list[float]:
        return [number(run) for run in self.runs]


def write_table(run_folders: list[Path], out: Path) -> None:
    """Write the table of all runs below ``run_folders`` to ``out``.

    Raises:
        ConfigError: A folder holds no report, or two runs are the same recipe and seed.
        StorageError: A report is damaged, or ``out`` cannot be written.
    """
    recipes = group(read_runs(run_folders))
    given = " ".join(shlex.quote(shown_path(path)) for path in run_folders)
    command = f"compress-deploy results {given} --out {shlex.quote(shown_path(out))}"
    text = markdown(recipes, command)
    write_whole(
        out,
        text,
        "the table",
        "accepted is a file in a folder that can; free some space or give another --out",
    )


def group(runs: Iterable[Run]) -> list[Recipe]:
    """Runs by recipe, in the order of names; settings of one name that differ make several rows.

    Raises:
        ConfigError: Two runs are the same recipe and seed.
    """
    together: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        key = run.record["name"], json.dumps(run.settings, sort_keys=True)
        seeds = together.setdefault(key, {})
        if run.seed in seeds:
            raise ConfigError(
                f"results: {seeds[run.seed].path} and {run.path} are both {key[0]} with seed "
                f"{run.seed}; accepted is one run of a recipe and seed; leave one of them out"
            )
        seeds[run.seed] = run
    names = [name for name, _ in together]
    recipes = []
    for (name, settings), seeds in sorted(together.items(), key=lambda item: item[0]):
        same = sorted(text for other, text in together if other == name)
        shown = f"{name} ({same.index(settings) + 1})" if names.count(name) > 1 else name
        recipes.append(Recipe(shown, tuple(seeds[seed] for seed in sorted(seeds))))
    return recipes


def markdown(recipes: Sequence[Recipe], command: str) -> str:
    """The whole page."""
    runs = [run for recipe in recipes for run in recipe.runs]
    parts = [
        "# Results",
        bullets(_header(runs, command)),
        markdown_table(_HEAD, [_row(recipe) for recipe in recipes]),
    ]
    if any(len(recipe.runs) > 1 for recipe in recipes):
        parts.append(
            "Where a recipe ran with several seeds: mean ± standard deviation over the seeds (n - 1)."
        )
    parts += _variants(recipes)
    pairs = [row for one, other in combinations(recipes, 2) if (row := _paired(one, other))]
    if pairs:
        parts += [
            "## Differences on the same seed",
            "The first recipe's student against the second's, run by run: plus is points of top-1 that "
            "the first has more, and times faster above 1 is a median latency that it has lower.",
            markdown_table(
                ("recipes", "n", "top-1, points", "by seed", "times faster, median"), pairs, left=1
            ),
        ]
    missed = [line for recipe in recipes for line in _missed(recipe)]
    asked = any(run.record["goals"] for run in runs)
    verdict = "Every goal that was asked is met." if asked else "No goal was asked."
    parts += ["## Goals missed", bullets(missed) if missed else verdict]
    method = dict.fromkeys(line for run in runs for line in run.record.get("method", ()))
    if method:
        parts += ["## How it was measured", bullets(method)]
    return "\n\n".join(parts) + "\n"


_HEAD = (
    "recipe",
    "n",
    "seeds",
    "top-1 teacher, %",
    "top-1 student, %",
    "drop, points",
    "MACs",
    "times fewer",
    "parameters",
    "times fewer",
    "bytes",
    "times smaller",
    "latency p50, ms",
    "latency p90, ms",
    "times faster, p50",
    "times faster, p90",
    "epochs",
    "seconds",
)


def _row(recipe: Recipe) -> tuple[str, ...]:
    def of(form: str, number: Callable[[Run], float]) -> str:
        return spread(recipe.values(number), form)

    def both(form: str, *keys: str) -> str:
        teacher = mean(recipe.values(methodcaller("number", "teacher", *keys)), form)
        return f"{teacher} → {of(form, methodcaller('number', 'student', *keys))}"

    cells = [
        recipe.name,
        str(len(recipe.runs)),
        ", ".join(str(run.seed) for run in recipe.runs),
        mean(recipe.values(lambda run: run.number("teacher", "top1")), ".2f"),
        of(".2f", lambda run: run.number("student", "top1")),
        of(".2f", _drop),
    ]
    for key in ("macs", "parameters", "size_bytes"):
        cells += [both(",.0f", key), of(".2f", methodcaller("times", key))]
    cells += [both(".3f", "latency_ms", percentile) for percentile in PERCENTILES]
    cells += [
        of(".2f", methodcaller("times", "latency_ms", percentile)) for percentile in PERCENTILES
    ]
    return *cells, of("g", lambda run: run.epochs), of(",.0f", lambda run: run.seconds)


def _drop(run: Run) -> float:
    return run.number("teacher", "top1") - run.number("student", "top1")


def _header(runs: Sequence[Run], command: str) -> list[str]:
    """What all numbers depend on; several lines of a kind where the runs differ."""
    return [
        *each("data", (_data(run.record) for run in runs)),
        *each("hardware", (hardware(run.record) for run in runs)),
        *each("versions", (versions(run.record) for run in runs)),
        "measured: " + _dates(runs),
        f"written by: `{command}`",
    ]


def _data(record: Mapping[str, Any]) -> str:
    data = record["recipe"]["data"]
    root = f" `{Path(data['root']).name}`" if data.get("root") else ""
    mark = str(record.get("data_fingerprint") or "not recorded")[:12]
    title = f"{data['title']}: " if data.get("title") else ""
    return f"{title}{data['kind']}{root}, fingerprint {mark}"


def _dates(runs: Sequence[Run]) -> str:
    days = sorted({str(run.record["date"])[:10] for run in runs if run.record.get("date")})
    if not days:
        return "date not recorded"
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _variants(recipes: Sequence[Recipe]) -> list[str]:
    """In which settings rows of one name differ."""
    named: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        named.setdefault(recipe.runs[0].record["name"], []).append(recipe)
    lines = []
    for same in named.values():
        settings = [recipe.runs[0].settings for recipe in same]
        keys = sorted({key for flat in settings for key in flat})
        differing = [key for key in keys if len({flat.get(key) for flat in settings}) > 1]
        for recipe, flat in zip(same, settings, strict=True):
            if differing:
                said = ", ".join(f"{key} {flat.get(key, 'absent')}" for key in differing)
                lines.append(f"{recipe.name}: {said}")
    return [bullets(lines)] if lines else []


def _paired(one: Recipe, other: Recipe) -> tuple[str, ...] | None:
    """Their differences on common seeds; None where there are none, or other data or teachers."""
    by_seed = {run.seed: run for run in other.runs}
    pairs = [(run, by_seed[run.seed]) for run in one.runs if run.seed in by_seed]
    if not pairs or any(a.teacher != b.teacher for a, b in pairs):
        return None
    points = [a.number("student", "top1") - b.number("student", "top1") for a, b in pairs]
    p50 = ("student", "latency_ms", "p50")
    faster = [b.number(*p50) / a.number(*p50) for a, b in pairs]
    seeds = [f"{a.seed}: {value:+.2f}" for (a, _), value in zip(pairs, points, strict=True)]
    return (
        f"{one.name} minus {other.name}",
        str(len(pairs)),
        spread(points, "+.2f"),
        ", ".join(seeds),
        spread(faster, ".2f"),
    )


def _missed(recipe: Recipe) -> Iterator[str]:
    for run in recipe.runs:
        for name, goal in run.record["goals"].items():
            if not goal["met"]:
                reached = "not known" if goal["reached"] is None else f"{goal['reached']:.4g}"
                yield (
                    f"{recipe.name}, seed {run.seed}: {name} at most {goal['asked']:g} asked, "
                    f"{reached} reached"
                )
