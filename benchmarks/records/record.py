"""The record: what one benchmark run writes, what is compared and what the report page shows.

One JSON object; ``null`` is a value that is not known, NaN and infinity never occur.  Times are in
ms where the key says so.  A key in brackets may be absent.

* format, format_version: "compress-deploy record", 1
* created: ISO 8601 with time zone
* status: "complete"; "partial", the run was interrupted; "invalid", its numbers mean nothing.  Only
  complete records are compared
* invalid_because: sentences, empty unless the status is "invalid"
* bundle: name, manifest_sha256
* device: name, kind ("local", "ssh", ...) and what its check found
* modes: what has to be equal for two records to be comparable
  - provider: "ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"
  - target: what the student was lowered for
  - threads, affinity (list of processors, null: the system chooses), batch
  - scenario, profile, [target_qps, bound_ms] of the server scenario
  - copies_included, cuda_graph, spin
  - power_mode: of the board, null where it has none
  - versions: of the runtime and of what it stands on
* models: "teacher" and "student", or one of them
  - file, sha256, size_bytes: of the model as shipped
  - latency_ms: of one query
    + p50, p90, p95, p99, p99.9: order statistics, null where there are too few samples
    + n, mean, cov; interval95: [low, high] of p50; intervals95: the same by percentile
    + early_stopping: {percentile, estimate, discarded}: MLPerf's bound for the scenario
    + samples: in the order of measurement; samples_every: 1, or k where only each k-th was kept
    + round_lengths: how many of ``samples`` each round of the interleaving gave
    + opening_rounds: how many rounds there were each time that the session was opened
  - samples_per_query, throughput_per_s (samples, not queries), throughput_interval95
  - warm_up: {queries, seconds}
  - energy: benchmarks.energy.per_inference's record, or null
  - layers: list of benchmarks.timing.layer_times' records, or null
  - [server: what each offered load gave], [loadgen: the cross-check], [accuracy]
* speedup: teacher's latency over the student's, null unless both were measured; p50, interval95,
  p90, p90_interval95, p99, p99_interval95, difference_ms, difference_interval95 (of p50);
  throughput, throughput_interval95: the student's over the teacher's
* harness: overhead_us, reported_us (what an empty session measures), clock, clock_step_ns
* checks: trend, outliers, autocorrelation (each by model), samples (agreement with the recorded
  outputs, by model), warnings: sentences
* environment: benchmarks.environment's record; during: how temperatures and clocks moved in the run
* meter: what measured the energy, or null; [energy_because: why there is none]
* request: what was asked, as benchmarks.records.request.Request.to_dict() gives it
* duration_s
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Mapping

from deploy.errors import DataError, StorageError
from deploy.whole_file import write_whole

FORMAT, VERSION = "compress-deploy record", 1
STATUSES = ("complete", "partial", "invalid")
MODELS = ("teacher", "student")
_OBJECT, _LIST, _TEXT, _NUMBER = "an object", "a list", "a text", "a number"
_KINDS: dict[str, Any] = {_OBJECT: dict, _LIST: list, _TEXT: str, _NUMBER: (int, float)}
_NUMBERS = re.compile(r"\[\s+[-\d.eE,\s]+\]")
_REQUIRED = {
    "created": _TEXT,
    "status": _TEXT,
    "invalid_because": _LIST,
    "bundle": _OBJECT,
    "device": _OBJECT,
    "modes": _OBJECT,
    "models": _OBJECT,
    "harness": _OBJECT,
    "checks": _OBJECT,
    "environment": _OBJECT,
}
_REQUIRED_INSIDE = {
    "bundle": {"name": _TEXT, "manifest_sha256": _TEXT},
    "device": {"name": _TEXT, "kind": _TEXT},
    "modes": {
        "provider": _TEXT,
        "target": _TEXT,
        "threads": _NUMBER,
        "batch": _NUMBER,
        "scenario": _TEXT,
        "profile": _TEXT,
        "versions": _OBJECT,
    },
    "checks": {"warnings": _LIST},
}
_REQUIRED_OF_A_MODEL = {"file": _TEXT, "sha256": _TEXT, "latency_ms": _OBJECT}


def write_record(record: Mapping[str, Any], path: Path) -> Path:
    """Write a record that appears whole or not at all.

    Raises:
        DataError: It is not a record.
        StorageError: It cannot be written.
    """
    path = Path(path)
    final = plain(record)
    validate(final, str(path))
    text = json.dumps(final, indent=1, allow_nan=False, ensure_ascii=False)
    return write_whole(
        path,
        _NUMBERS.sub(_on_one_line, text) + "\n",
        "the record",
        "free some space or choose another place with --out",
    )


def read_record(path: Path) -> dict[str, Any]:
    """The record in ``path``, of whatever status.

    Raises:
        StorageError: There is no such file, or it is no JSON.
        DataError: It is no record, or lacks something; says what.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise StorageError(
            f"{path}: the record cannot be read ({reason}); give a file that `bench --out` wrote"
        ) from error
    validate(record, str(path))
    return record


def validate(record: Any, where: str) -> None:
    """Whether the record holds what every reader relies on.

    Raises:
        DataError: It does not; names what is missing or of another kind.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{where}: not a record; give a file that `compress-deploy bench` wrote")
    if record.get("format_version") != VERSION:
        raise DataError(
            f"{where}: record format {record.get('format_version')!r}; this program reads "
            f"{VERSION}; use the version that wrote it"
        )
    problems = _lacking(record, _REQUIRED, "")
    for section, keys in _REQUIRED_INSIDE.items():
        problems += _lacking(record.get(section), keys, f"{section}.")
    models = record.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        problems += _lacking(model, _REQUIRED_OF_A_MODEL, f"models.{name}.")
        if name not in MODELS:
            problems.append(f"models.{name} is neither of {list(MODELS)}")
    if record.get("status") not in STATUSES:
        problems.append(f"status is {record.get('status')!r}, not one of {list(STATUSES)}")
    elif record["status"] == "complete" and not models:
        problems.append("models is empty")
    elif record["status"] == "invalid" and not record.get("invalid_because"):
        problems.append("invalid_because is empty")
    if problems:
        raise DataError(f"{where}: the record is damaged: {'; '.join(problems)}; measure again")


def require_complete(record: Mapping[str, Any], where: str) -> None:
    """Whether the record's numbers may be compared.

    Raises:
        DataError: It is partial or invalid.
    """
    if record["status"] == "partial":
        raise DataError(
            f"{where}: a partial record (the run was interrupted); it is never compared, "
            "measure again"
        )
    if record["status"] != "complete":
        raise DataError(
            f"{where}: an invalid record ({'; '.join(record['invalid_because'])}); "
            "it is never compared, remove the cause and measure again"
        )


def plain(value: Any) -> Any:
    """JSON's types only: NaN and infinity become ``None``, numpy's numbers and arrays plain."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _on_one_line(numbers: re.Match[str]) -> str:
    return " ".join(numbers.group().split())


def _lacking(section: Any, keys: Mapping[str, str], where: str) -> list[str]:
    if not isinstance(section, dict):
        return []  # said where the section itself is asked for
    problems = []
    for key, kind in keys.items():
        if key not in section:
            problems.append(f"{where}{key} is missing")
        elif not isinstance(section[key], _KINDS[kind]) or isinstance(section[key], bool):
            problems.append(f"{where}{key} is not {kind}")
    return problems
