"""Sources of a page: run folders and record files, found, checked, and put together.

A record belongs to the run whose bundle it measured: it knows the hash of the bundle's manifest, and
of each model, which stays when an engine is added to the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.envelope import Envelope
from benchmarks.records.record import FORMAT, read_record
from benchmarks.report_file import ARTIFACTS, REPORT, read_report
from deploy.errors import ConfigError, StorageError

LOGS = "logs"
TRAIL = "trail"
MANIFEST = "manifest.json"
_RECORD_HEAD = 4096


@dataclass(frozen=True)
class Record:
    """One record of measurements, of whatever status."""

    path: Path
    data: Mapping[str, Any]

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def models(self) -> Mapping[str, Any]:
        return self.data["models"] if isinstance(self.data["models"], dict) else {}

    @property
    def bundle(self) -> str:
        return str(self.data["bundle"]["name"])

    @property
    def condition(self) -> str:
        """What has to be equal for two latencies to lie on one axis, in words."""
        modes, device = self.data["modes"], self.data["device"]
        facts = [
            str(device["name"]),
            str(modes["provider"]),
            counted(modes["threads"], "thread"),
            f"batch {modes['batch']}",
            str(modes["scenario"]),
        ]
        if modes.get("power_mode"):
            facts.append(f"power mode {modes['power_mode']}")
        return ", ".join(facts)


@dataclass(frozen=True)
class Log:
    """The log of one training stage: its rows in order, and how many lines were unreadable.

    ``trail`` is what was written down of every step, by name; its records are no rows.
    """

    stage: str
    rows: tuple[Mapping[str, Any], ...]
    unreadable: int
    trail: Mapping[str, Envelope] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run folder: its report, the logs of training, its bundle's manifest, records of the bundle.

    ``manifest`` is empty where the folder holds no bundle, and its hash too.
    """

    folder: Path
    report: Mapping[str, Any]
    logs: tuple[Log, ...]
    manifest: Mapping[str, Any]
    manifest_sha256: str
    records: tuple[Record, ...] = ()

    @property
    def bundle(self) -> Path:
        return self.folder / str(self.report.get("bundle") or "bundle")


@dataclass(frozen=True)
class Sources:
    """``runs`` with their records, and ``records`` of bundles whose run is not among them."""

    runs: tuple[Run, ...]
    records: tuple[Record, ...]


def read_sources(sources: Sequence[Path]) -> Sources:
    """Every run and record in or below the sources, each once.

    Raises:
        ConfigError: A source does not exist or holds neither.
        StorageError: A report or record cannot be read.
        DataError: A record is damaged.
    """
    reports: dict[Path, Path] = {}
    files: dict[Path, Path] = {}
    for source in sources:
        found = list(_found(Path(source)))
        if not found:
            there = "holds no run and no record" if Path(source).exists() else "does not exist"
            raise ConfigError(
                f"report: {source} {there}; accepted are folders that `compress-deploy run` wrote, "
                "with a report.json, and record files of `compress-deploy bench`; name one of those"
            )
        for path in found:
            (reports if path.name == REPORT else files).setdefault(path.resolve(), path)
    records = [Record(path, read_record(path)) for path in files.values()]
    read = [_run(path) for path in reports.values()]
    owners = {record.path: _owners(record, read) for record in records}
    runs = tuple(
        replace(run, records=tuple(one for one in records if run in owners[one.path]))
        for run in read
    )
    return Sources(runs, tuple(one for one in records if not owners[one.path]))


def _found(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    for root, folders, files in os.walk(source):
        names = sorted(name for name in folders if name != ARTIFACTS and not name.startswith("."))
        if REPORT in files:
            yield Path(root, REPORT)
            names = [name for name in names if name not in (LOGS, "bundle")]
        folders[:] = names
        for name in sorted(files):
            path = Path(root, name)
            if name != REPORT and path.suffix == ".json" and _is_record(path):
                yield path


def _is_record(path: Path) -> bool:
    """Whether a JSON file in a folder says that it is a record; it says so at its beginning."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(_RECORD_HEAD)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}); make it readable or name the files you mean"
        ) from error
    return f'"format": "{FORMAT}"' in head


def _owners(record: Record, runs: Sequence[Run]) -> list[Run]:
    """The runs whose bundle has the record's manifest, or where none has, the same models."""
    manifest = record.data["bundle"]["manifest_sha256"]
    exact = [run for run in runs if manifest and run.manifest_sha256 == manifest]
    measured = {str(model["sha256"]) for model in record.models.values()}
    return exact or [run for run in runs if measured and measured <= _hashes(run)]


def _hashes(run: Run) -> set[str]:
    files = mapping(run.manifest.get("files"))
    return {str(mapping(entry).get("sha256")) for entry in files.values()}


def _run(path: Path) -> Run:
    folder, report = path.parent, read_report(path)
    files = sorted((folder / LOGS).glob("*.jsonl"), key=lambda one: _place(one, report["stages"]))
    logs = [_log(one) for one in files]
    path = folder / str(report.get("bundle") or "bundle") / MANIFEST
    manifest = _read_mapping(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if manifest else ""
    return Run(folder, report, tuple(logs), manifest, sha256)


def _read_mapping(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); accepted is a bundle as it was "
            "written; copy the run again"
        ) from error
    return value if isinstance(value, dict) else {}


def _place(log: Path, stages: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """Where in the chain the stage of a log is; for a report that does not say so, by its name."""
    for key, known in (("log", log.name), ("name", _stage_of(log))):
        found = [place for place, stage in enumerate(stages) if stage.get(key) == known]
        if found:
            return found[0], log.name
    return len(stages), log.name


def _stage_of(log: Path) -> str:
    return log.stem.rpartition("-")[0] or log.stem


def _log(path: Path) -> Log:
    """A log; a run that was killed may have left half a line, which is counted.

    A trail has a record of every step, so it is thinned as it is read.
    """
    rows: list[Mapping[str, Any]] = []
    trail: dict[str, Envelope] = {}
    unreadable = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                unreadable += 1
            elif row.get("kind") == TRAIL:
                _follow(trail, row)
            else:
                rows.append(row)
    return Log(_stage_of(path), tuple(rows), unreadable, trail)


def _follow(trail: dict[str, Envelope], row: Mapping[str, Any]) -> None:
    """Add one record; what is not a number is left out."""
    step = numbers.known(row, "step")
    if step is None:
        return
    for name in row:
        value = None if name in ("kind", "step") else numbers.known(row, name)
        if value is not None:
            if name not in trail:
                trail[name] = Envelope()
            trail[name].add(step, value)


def counted(count: Any, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, an empty one otherwise: sections of a file may be null."""
    return value if isinstance(value, dict) else {}
