"""A record comes back as it was written, or one line says what it lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.records.record import plain, read_record, require_complete, validate, write_record
from deploy.errors import CompressDeployError, DataError, StorageError

EXAMPLE = Path(__file__).with_name("example_record.json")


@pytest.fixture
def record() -> dict[str, Any]:
    return read_record(EXAMPLE)


def test_the_example_holds_what_the_format_promises(record: dict[str, Any]) -> None:
    assert set(record["models"]) == {"teacher", "student"}
    for model in record["models"].values():
        latency = model["latency_ms"]
        assert sum(latency["round_lengths"]) == len(latency["samples"]) == latency["n"]
        assert sum(latency["opening_rounds"]) == len(latency["round_lengths"])
        low, high = latency["interval95"]
        assert low <= latency["p50"] <= high
        assert model["layers"]
    require_complete(record, "example")


def test_written_and_read(record: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(record, tmp_path / "new" / "r.json")
    assert read_record(path) == record
    assert [each.name for each in path.parent.iterdir()] == ["r.json"]
    samples = next(line for line in path.read_text().splitlines() if '"samples": [' in line)
    assert samples.count(",") > 100  # numbers stand on one line


def test_what_json_cannot_say_becomes_null(record: dict[str, Any], tmp_path: Path) -> None:
    record["duration_s"] = math.nan
    record["harness"]["overhead_us"] = np.float64(math.inf)
    record["checks"]["array"] = np.arange(3)
    record["where"] = Path("there")
    back = read_record(write_record(record, tmp_path / "r.json"))
    assert back["duration_s"] is None
    assert back["harness"]["overhead_us"] is None
    assert back["checks"]["array"] == [0, 1, 2]
    assert plain({"a": (Path("x"), np.int64(3))}) == {"a": ["x", 3]}


@pytest.mark.parametrize("key", ["bundle", "modes", "models", "device", "checks", "environment"])
def test_a_missing_part_is_named(record: dict[str, Any], key: str, tmp_path: Path) -> None:
    del record[key]
    (tmp_path / "r.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"r.json: the record is damaged: {key} is missing") as told:
        read_record(tmp_path / "r.json")
    assert "\n" not in str(told.value)


def change(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (change("status", to="fine"), "status is 'fine'"),
        (change("modes", "threads", to="two"), "modes.threads is not a number"),
        (change("modes", "threads", to=True), "modes.threads is not a number"),
        (change("models", "student", "sha256", to=None), "models.student.sha256 is not a text"),
        (change("models", to={}), "models is empty"),
        (change("models", "pupil", to={}), "models.pupil is neither"),
        (change("status", to="invalid"), "invalid_because is empty"),
        (change("format_version", to=9), "record format 9; this program reads 1"),
        (change("format", to="other"), "not a record"),
    ],
)
def test_a_damaged_record_is_refused(
    record: dict[str, Any], edit: Callable[[dict[str, Any]], None], why: str
) -> None:
    edit(record)
    with pytest.raises(DataError, match=why):
        validate(record, "r.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_what_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(CompressDeployError, match="r.json: "):
        read_record(tmp_path / "r.json")
    with pytest.raises(StorageError, match="cannot be read"):
        read_record(tmp_path / "absent.json")


def test_a_damaged_record_is_not_written(record: dict[str, Any], tmp_path: Path) -> None:
    del record["modes"]
    with pytest.raises(DataError, match="modes is missing"):
        write_record(record, tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_record(record, tmp_path / "file" / "r.json")


def test_only_complete_records_are_compared(record: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="r.json: a partial record"):
        require_complete({**record, "status": "partial"}, "r.json")
    because = {"status": "invalid", "invalid_because": ["too hot"]}
    with pytest.raises(DataError, match="too hot"):
        require_complete({**record, **because}, "r.json")


def test_a_partial_record_may_lack_models(record: dict[str, Any]) -> None:
    validate({**record, "status": "partial", "models": {}}, "r.json")
