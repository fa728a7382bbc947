"""Reports read back: found below folders, and checked for their shape."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterator

from deploy.errors import StorageError

REPORT, ARTIFACTS = "report.json", "artifacts"
_ACCEPTED = "accepted is a report that `compress-deploy run` wrote"
_KINDS = {
    "name": str,
    "seed": int,
    "teacher": dict,
    "student": dict,
    "goals": dict,
    "stages": list,
    "environment": dict,
    "recipe": dict,
}


def find_reports(folder: Path) -> Iterator[Path]:
    """Every report in or below the folder; artifacts and hidden folders are not looked into."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ARTIFACTS and not name.startswith(".")]
        if REPORT in files:
            yield Path(root, REPORT)


def read_report(path: Path) -> dict[str, Any]:
    """A report whose sections are there and of the right kind; its numbers are not judged.

    Raises:
        StorageError: It cannot be read or lacks something; says what.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{path}: cannot be read ({reason}); {_ACCEPTED}; run the recipe again"
        ) from error
    problem = _problem(record)
    if problem is not None:
        raise refused(path, problem)
    return dict(record)


def refused(path: Path, problem: str) -> StorageError:
    """The error that says what is wrong with a report."""
    return StorageError(
        f"{path}: {problem}; {_ACCEPTED}; run the recipe again or leave its folder out"
    )


def _problem(record: Any) -> str | None:
    """What a report lacks, or None."""
    if not isinstance(record, dict):
        return "holds no mapping"
    for key, kind in _KINDS.items():
        if not isinstance(record.get(key), kind):
            return f"{key} is missing or no {kind.__name__}"
    if not isinstance(record["recipe"].get("data"), dict):
        return "recipe.data is missing"
    if not all(isinstance(stage, dict) for stage in record["stages"]):
        return "stages holds what is no dict"
    for name, goal in record["goals"].items():
        if not isinstance(goal, dict) or not {"asked", "reached", "met"} <= set(goal):
            return f"goals.{name} lacks asked, reached or met"
    return None
