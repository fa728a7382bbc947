"""Pieces that tables of results in Markdown are made of: cells, lists, and what all numbers depend on."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are text and the others numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def each(what: str, lines: Iterable[str]) -> list[str]:
    """``what: line`` for each line that differs from those before."""
    return [f"{what}: {line}" for line in dict.fromkeys(lines)]


def spread(values: Sequence[float], form: str) -> str:
    """Mean, and the standard deviation where there are several values."""
    if len(values) < 2:
        return mean(values, form)
    return f"{mean(values, form)} ± {statistics.stdev(values):{form.lstrip('+')}}"


def mean(values: Sequence[float], form: str) -> str:
    """The mean, as ``form`` writes numbers."""
    return f"{statistics.fmean(values):{form}}"


def hardware(record: Mapping[str, Any]) -> str:
    """The processor that a report or a record was made on."""
    known = record["environment"]
    cores = known.get("usable_cores") or known.get("cores") or "unknown number of"
    return f"{known.get('cpu_model') or 'unknown CPU'}, {cores} cores"


def versions(record: Mapping[str, Any]) -> str:
    """What was installed there."""
    known = record["environment"]
    told = {"python": known.get("python"), **(known.get("versions") or {})}
    told |= record.get("versions") or {}
    return ", ".join(f"{n} {v}" for n, v in told.items() if v and v != "not installed")


def shown_command(
    verb: str,
    places: Sequence[Path],
    options: Mapping[str, Any],
    overrides: Sequence[str] = (),
    last: Mapping[str, Any] | None = None,
) -> str:
    """The command that made a page, as a reader elsewhere can repeat it: paths without their folders.

    Args:
        verb: Of ``compress-deploy``.
        places: What it was given.
        options: By their names; those that are None were not given. ``last`` come after the overrides.
        overrides: Of ``--set``.
    """
    said = ["compress-deploy", verb, *map(shown_path, places)]
    given = [*options.items(), *(("--set", shown_override(one)) for one in overrides)]
    for option, value in (*given, *(last or {}).items()):
        if value is not None:
            said += [option, shown_path(value) if isinstance(value, Path) else str(value)]
    return shlex.join(said)


def shown_override(override: str) -> str:
    """``key=value`` of a ``--set`` as a reader elsewhere may see it."""
    key, _, value = override.partition("=")
    path = Path(value)
    return f"{key}={shown_path(path) if path.is_absolute() else value}"


def shown_path(path: Path) -> str:
    """A path as a reader elsewhere may see it: relative, or only its name."""
    if not path.is_absolute():
        return str(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
