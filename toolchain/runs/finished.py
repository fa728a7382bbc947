"""Reports of finished runs: found below folders, checked, and read as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report_file import REPORT, find_reports, read_report, refused
from deploy.errors import ConfigError

PERCENTILES = ("p50", "p90")
_NETWORK_KEYS = ("top1", "parameters", "macs", "size_bytes")


@dataclass(frozen=True)
class Run:
    """One report.

    Attributes:
        path: Of its ``report.json``.
        record: What is in it.
    """

    path: Path
    record: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    @property
    def epochs(self) -> float:
        """Passes over the training part, of all stages together."""
        configs = [stage.get("config") or {} for stage in self.record["stages"]]
        return math.fsum(config.get("epochs") or 0 for config in configs)

    @property
    def seconds(self) -> float:
        """Of all stages before the report."""
        return math.fsum(stage.get("seconds") or 0 for stage in self.record["stages"])

    def number(self, who: str, *keys: str) -> float:
        """A number of ``teacher`` or ``student``."""
        value: Any = self.record[who]
        for key in keys:
            value = value[key]
        return float(value)

    def times(self, *keys: str) -> float:
        """How many times more the teacher has than the student."""
        return self.number("teacher", *keys) / self.number("student", *keys)

    @property
    def settings(self) -> dict[str, str]:
        """The recipe, flat, without what differs between seeds and machines."""
        flat = dict(_flat(self.record["recipe"]))
        for key in ("name", "seed", "threads", "data.root"):
            flat.pop(key, None)
        for key in ("model.checkpoint", "model.file"):
            flat[key] = Path(str(flat.get(key))).name
        return flat | {"data": str(self.record.get("data_fingerprint", "")), **self.teacher}

    @property
    def teacher(self) -> dict[str, str]:
        """What two runs must have in common to be compared."""
        sizes = {key: f"{self.record['teacher'][key]}" for key in ("parameters", "macs")}
        return {"data": str(self.record.get("data_fingerprint", "")), **sizes}


def read_runs(run_folders: Iterable[Path]) -> list[Run]:
    """Every report in or below the folders, each once; artifacts are not looked into.

    Raises:
        ConfigError: A folder does not exist or holds no report.
        StorageError: A report cannot be read or lacks something.
    """
    found: dict[Path, Run] = {}
    for folder in run_folders:
        paths = sorted(find_reports(folder))
        if not paths:
            given = "holds no report" if folder.is_dir() else "is not a folder"
            raise ConfigError(
                f"results: {folder} {given}; accepted is what `compress-deploy run` wrote as --out, "
                f"with a {REPORT} in each run's folder; finish a run first"
            )
        for path in paths:
            found.setdefault(path.resolve(), Run(path, _read(path)))
    return list(found.values())


def _read(path: Path) -> dict[str, Any]:
    record = read_report(path)
    problem = _problem(record)
    if problem is not None:
        raise refused(path, problem)
    return record


def _problem(record: Mapping[str, Any]) -> str | None:
    """Which number a table cannot do without, or None."""
    for who in ("teacher", "student"):
        latency = record[who].get("latency_ms")
        numbers = {key: record[who].get(key) for key in _NETWORK_KEYS}
        for percentile in PERCENTILES:
            known = latency.get(percentile) if isinstance(latency, dict) else None
            numbers[f"latency_ms.{percentile}"] = known
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"{who}.{key} is {value!r} and no number"
            if key != "top1" and value <= 0:
                return f"{who}.{key} is {value!r} and not above 0"
    return None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """A tree of mappings and lists as dotted keys and JSON values."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(value)
