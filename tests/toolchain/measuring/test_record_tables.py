"""What a person reads of a record."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.records.compare import Compared, Difference
from benchmarks.records.record import read_record
from toolchain.measuring.record_tables import (
    comparison_table,
    fleet_table,
    record_lines,
    record_rows,
    record_table,
)

EXAMPLE = Path(__file__).parents[2] / "benchmarks" / "records" / "example_record.json"


@pytest.fixture
def record() -> dict[str, Any]:
    made = read_record(EXAMPLE)
    for name, p50, p90, p99 in (("teacher", 2.0, 2.5, None), ("student", 0.5, 0.6, 0.9)):
        model = made["models"][name]
        model["latency_ms"].update(p50=p50, p90=p90, p99=p99, n=1234)
        model["latency_ms"]["intervals95"] = {"p50": [p50 - 0.1, p50 + 0.1]}
        model["latency_ms"]["early_stopping"] = {"percentile": 90.0, "estimate": p90 + 0.1}
        model["throughput_per_s"] = 1000 / p50
    made["speedup"] = {"p50": 4.0, "interval95": [3.9, 4.1], "p90": 4.2, "p99": None,
                       "throughput": 4.0}  # fmt: skip
    return made


def row(record: dict[str, Any], label: str) -> tuple[str, ...]:
    return next(row[1:] for row in record_rows(record) if row[0] == label)


def test_rows(record: dict[str, Any]) -> None:
    assert row(record, "latency p50") == ("2.000 ms", "0.5000 ms", "4.00 × faster")
    assert record_rows(record)[1][1:] == (
        "1.9000 to 2.1000", "0.4000 to 0.6000", "3.900 to 4.100",
    )  # fmt: skip
    assert row(record, "latency p99") == ("–", "0.9000 ms", "–")
    assert row(record, "bound by MLPerf") == ("p90 ≤ 2.600 ms", "p90 ≤ 0.7000 ms", "")
    assert row(record, "throughput") == ("500/s", "2,000/s", "4.00 × more")
    assert row(record, "queries") == ("1,234", "1,234", "")
    labels = [each[0] for each in record_rows(record)]
    assert "energy per inference" not in labels
    assert "offered load" not in labels


def test_energy_rows(record: dict[str, Any]) -> None:
    record["models"]["teacher"]["energy"] = {"total_j": 0.010, "net_j": 0.004}
    record["models"]["student"]["energy"] = {"total_j": 0.004, "net_j": None}
    assert row(record, "energy per inference") == ("10 mJ", "4 mJ", "2.50 × less")
    assert row(record, "  above idle") == ("4 mJ", "–", "–")
    record["models"]["student"]["energy"]["net_j"] = -0.001  # negative within its uncertainty
    assert row(record, "  above idle") == ("4 mJ", "-1 mJ", "–")


def test_a_slower_student_is_called_slower(record: dict[str, Any]) -> None:
    record["speedup"]["p50"] = 0.5
    record["speedup"]["interval95"] = [0.4, 0.8]
    assert row(record, "latency p50")[2] == "2.00 × slower"
    assert record_rows(record)[1][3] == "1.250 to 2.500"


def test_one_model_alone(record: dict[str, Any]) -> None:
    del record["models"]["teacher"]
    record["speedup"] = None
    assert row(record, "latency p50") == ("–", "0.5000 ms", "–")


def test_the_servers_load(record: dict[str, Any]) -> None:
    record["models"]["student"]["server"] = {"offered_qps": 120.0}
    assert row(record, "offered load") == ("–", "120.0/s", "")


def test_lines(record: dict[str, Any]) -> None:
    record["checks"]["warnings"] = ["student: too noisy"]
    record["models"]["student"]["loadgen"] = {
        "agree": False, "p90_ms": 1.0, "loadgen_p90_ms": 2.0, "loadgen_overhead_ms": 0.1,
        "noise_ms": 0.2,
    }  # fmt: skip
    lines = "\n".join(record_lines({**record, "invalid_because": ["hot"]}))
    for words in ("invalid: hot", "warning: student: too noisy", "they DISAGREE",
                  "no energy: not asked for"):  # fmt: skip
        assert words in lines
    record["meter"] = {"name": "ina"}
    assert "energy: by ina" in record_lines(record)


def shown(table: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_tables_fit_a_terminal(record: dict[str, Any]) -> None:
    text = shown(record_table(record))
    assert "…" not in text
    assert "digits-demo on local: single-stream" in text
    span = (3.536, 3.9256)
    throughput = Difference("student", "throughput", "/s", 66690, 21400, 3.908, span, None)
    text = shown(comparison_table(Compared("a.json", "b.json", {}, (throughput,))))
    for words in ("student throughput, /s", "66,690", "+290.8 %", "+253.6 to +292.6 %", "better"):
        assert words in text
    other = copy.deepcopy(record)
    other.update(device={"name": "orin", "kind": "ssh"}, status="invalid", invalid_because=["hot"])
    text = shown(fleet_table([record, other], ["nano"]))
    assert "…" not in text
    for words in ("orin", "invalid", "nano", "failed", "4.00 ×", "3.90–4.10"):
        assert words in text
