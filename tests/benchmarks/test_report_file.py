"""Reports read back: found, and refused where a section is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import build_report, write_report
from benchmarks.report_file import find_reports, read_report
from deploy.errors import StorageError

NETWORK = {"top1": None, "parameters": 1, "macs": 1, "size_bytes": 1, "latency_ms": None}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    made = build_report(
        name="net", seed=0, teacher=NETWORK, student={**NETWORK, "onnx": "student.onnx"},
        goals={"macs": 0.5}, stages=[{"name": "teacher"}], recipe={"data": {}},
    )  # fmt: skip
    return write_report(made, tmp_path / "runs" / "net-1a2b")[0]


def test_what_was_written_is_found_and_read(report: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "runs" / "artifacts" / "report-3c4d"
    hidden.mkdir(parents=True)
    (hidden / "report.json").write_bytes(report.read_bytes())
    assert list(find_reports(tmp_path)) == [report]
    assert read_report(report)["goals"]["macs"]["asked"] == 0.5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", "0", "seed is missing or no int"),
        ("recipe", {}, "recipe.data is missing"),
        ("stages", [1], "stages holds what is no dict"),
        ("goals", {"macs": {"asked": 1}}, "goals.macs lacks"),
    ],
)
def test_a_damaged_section_is_named(report: Path, key: str, value: Any, said: str) -> None:
    record = json.loads(report.read_text())
    report.write_text(json.dumps({**record, key: value}))
    with pytest.raises(StorageError, match=said) as caught:
        read_report(report)
    assert str(report) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_report_is_one_line(report: Path, text: str) -> None:
    report.write_text(text)
    with pytest.raises(StorageError) as caught:
        read_report(report)
    assert "\n" not in str(caught.value)
