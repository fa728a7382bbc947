"""Run benchmarks, here or on devices, write their records and show them; compare records."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.bench import Request, run_bench
from benchmarks.records.compare import compare_records
from benchmarks.records.record import read_record, write_record
from deploy.bundle import Bundle, bundle_folder
from deploy.devices.lock import only_one
from deploy.errors import ConfigError
from toolchain.measuring.progress_bars import Bars
from toolchain.measuring.record_tables import (
    comparison_table,
    fleet_table,
    record_lines,
    record_table,
)

RECORDS = Path("records")
INTERRUPTED = 130


def bench_everywhere(
    folder: Path,
    requests: Sequence[Mapping[str, Any]],
    devices: Sequence[str],
    out: Path | None,
    *,
    as_json: bool,
) -> int:
    """Measure what each request asks on each device, and return the exit status.

    Raises:
        CompressDeployError: The bundle or a request is refused; or, on a single device, what it
            could not do.
    """
    asked = [Request.from_dict(request) for request in requests]
    bundle = Bundle.open(bundle_folder(folder))
    if out is not None and out.is_dir():
        raise ConfigError(
            f"--out: {out} is a folder; give the name of a file in it, {out}/NAME.json"
        )
    if len({request.batch for request in asked}) < len(asked):
        raise ConfigError("batch: the same one twice; give each once")
    made: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    for request in asked:
        found = (
            _on_devices(bundle, request, devices, failed) if devices else [_here(bundle, request)]
        )
        made += found
        if any(record["status"] == "partial" for record in found):
            break
    interrupted = any(record["status"] == "partial" for record in made)
    made = [record for record in made if record["models"] or record["status"] != "partial"]
    if interrupted and not made:  # nothing was measured until then
        raise KeyboardInterrupt
    paths = [
        write_record(record, path)
        for record, path in zip(made, record_paths(made, out), strict=True)
    ]
    if as_json:
        print(json.dumps(made[0] if len(made) == 1 else made, indent=1, ensure_ascii=False))
    else:
        _show(made, failed)
    for path in paths:
        print(f"record  {path}", file=sys.stderr if as_json else sys.stdout)
    for name, reason in failed:
        print(f"compress-deploy: {name}: {reason}", file=sys.stderr)
    if interrupted:
        print("compress-deploy: interrupted; the record is partial", file=sys.stderr)
        return INTERRUPTED
    invalid = [record for record in made if record["status"] == "invalid"]
    for record in invalid:
        print(
            f"compress-deploy: {record['device']['name']}: the record is invalid: "
            f"{'; '.join(record['invalid_because'])}",
            file=sys.stderr,
        )
    return 1 if failed or invalid else 0


def record_paths(records: Sequence[Mapping[str, Any]], out: Path | None) -> list[Path]:
    """A file for each record, told apart by device and batch where there are several.

    A name that nobody gave is never that of a file that is there: a stamp has whole seconds, and two
    runs may end in the same one. What ``out`` names is replaced.
    """
    several = {
        key: len({_told_apart(record)[key] for record in records}) > 1
        for key in ("device", "batch")
    }
    paths: list[Path] = []
    for record in records:
        marks = [mark for key, mark in _told_apart(record).items() if several[key]]
        if out is None:
            stamp = record["created"].partition("+")[0].replace("-", "").replace(":", "")
            parts = [record["bundle"]["name"], record["modes"]["scenario"], *marks, stamp]
            path = RECORDS / f"{'-'.join(parts)}.json"
        else:
            path = out.with_name("-".join([out.stem, *marks]) + (out.suffix or ".json"))
        paths.append(_unused(path, paths, replacing=out is not None))
    return paths


def _unused(path: Path, taken: Sequence[Path], *, replacing: bool) -> Path:
    """``path``, or with the first number from 2 on under which there is nothing yet."""
    number, found = 1, path
    while found in taken or (found.exists() and not replacing):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def compare_files(paths: Sequence[Path], allow: Sequence[str], *, as_json: bool) -> int:
    """Each record against the first; the exit status is 0 whatever is faster.

    Raises:
        ConfigError: Fewer than two records, or modes differ.
        DataError, StorageError: One is no record, or may not be compared.
    """
    if len(paths) < 2:
        raise ConfigError(f"compare: {len(paths)} record; give two or more")
    records = [read_record(path) for path in paths]
    compared = [
        compare_records(records[0], record, (str(paths[0]), str(path)), allow)
        for record, path in zip(records[1:], paths[1:], strict=True)
    ]
    if as_json:
        print(json.dumps([each.to_dict() for each in compared], indent=1, ensure_ascii=False))
        return 0
    console = Console()
    for each in compared:
        console.print(comparison_table(each))
        for mode, (first, second) in each.allowed.items():
            console.print(
                f"NOT MEASURED ALIKE, allowed: {mode}: {first} against {second}",
                highlight=False,
                markup=False,
            )
    console.print(
        "same: the interval of 95 % holds no change. What drifted from one run to the next is part "
        "of a change, except of the speedup, whose teacher ran beside it.",
        highlight=False,
    )
    return 0


def _here(bundle: Bundle, request: Request) -> dict[str, Any]:
    with only_one(), Bars() as bars:
        return run_bench(bundle, request, progress=bars.add("bench"))


def _on_devices(
    bundle: Bundle, request: Request, names: Sequence[str], failed: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """A record of each device that made one; ``failed`` gets the others."""
    from deploy.devices.device import find_device
    from deploy.devices.fleet import run_fleet

    devices = [find_device(name) for name in names]
    with Bars() as bars:
        tell = {device.name: bars.add(device.name) for device in devices}
        outcomes = run_fleet(
            devices,
            lambda device: device.bench(bundle.folder, request.to_dict(), tell[device.name]),
        )
    failed += [(each.device, each.error or "no record") for each in outcomes if not each]
    return [each.result for each in outcomes if each.result is not None]


def _show(records: Sequence[Mapping[str, Any]], failed: Sequence[tuple[str, str]]) -> None:
    console = Console()
    for record in records:
        console.print(record_table(record))
        for line in record_lines(record):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(records) + len(failed) > 1:
        console.print(fleet_table(records, [name for name, _ in failed]))


def _told_apart(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "device": "".join(c if c.isalnum() or c in "-_" else "-" for c in record["device"]["name"]),
        "batch": f"batch{record['modes']['batch']}",
    }
