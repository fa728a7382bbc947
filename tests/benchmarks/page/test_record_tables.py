"""A record's numbers: changes with their intervals, loads of the server scenario, energy, LoadGen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.page.reading import Record, read_sources
from benchmarks.page.record_tables import measured_table, remarks, server_table

Write = Callable[..., Path]


def record_of(path: Path, student: dict[str, Any] | None = None, **changes: Any) -> Record:
    data = json.loads(path.read_text())
    data.update(changes)
    data["models"]["student"].update(student or {})
    path.write_text(json.dumps(data))
    (record,) = read_sources([path]).records
    return record


def test_a_change_whose_interval_holds_one_is_undecided(write_record: Write) -> None:
    speedup = {"p50": 4.0, "interval95": [3.9, 4.1], "p90_interval95": [0.9, 6.0]}
    rows = {
        row[0].text: row for row in measured_table(record_of(write_record(), speedup=speedup)).rows
    }
    assert rows["latency, median"][3].tone == "good"
    assert rows["latency, median"][5].text == "3.90 to 4.10\u202f×"
    assert rows["latency, p90"][3].tone == "quiet"
    assert rows["latency, p90"][3].text.endswith(", undecided")
    assert rows["latency, p99"][5].text == "–"
    assert rows["latency, p95"][5].text == ""


def test_throughput_is_better_when_it_is_more(write_record: Write) -> None:
    row = next(
        r for r in measured_table(record_of(write_record())).rows if r[0].text == "throughput"
    )
    assert [cell.text for cell in row[:5]] == [
        "throughput", "1\u202f250\u202f/s", "5\u202f000\u202f/s", "4.00\u202f× more", "400.0\u202f%",
    ]  # fmt: skip
    assert row[3].tone == "good"


def test_loads_of_the_server_scenario(write_record: Write) -> None:
    load = {"offered_qps": 100.0, "served_qps": 99.5, "n": 500, "p50": 1.0, "p99": 3.0}
    tried = record_of(write_record(), {"server": {**load, "tried": [load, {**load, "p99": None}]}})
    table = server_table(tried)
    assert table is not None
    assert [[cell.text for cell in row][-1] for row in table.rows] == ["3.00\u202fms", "–"]
    alone = server_table(record_of(write_record(), {"server": load}))
    assert alone is not None
    assert len(alone.rows) == 1
    assert server_table(record_of(write_record())) is None


def test_energy_says_its_uncertainty_and_the_sensor_s_updates(write_record: Write) -> None:
    energy = {"total_j": 0.002, "uncertainty_j": 0.0001, "updates": 420, "inferences": 1000,
              "power_w": 5.5, "idle_w": 3.25}  # fmt: skip
    (line,) = remarks(record_of(write_record(), {"energy": energy}))
    assert line.replace("\u202f", " ") == (
        "energy, student: 2.00 mJ ± 100 µJ (one standard uncertainty), over 1 000 inferences, "
        "420 updates of the sensor, 5.50 W while running, 3.25 W idle"
    )


def test_the_cross_check_shows_both_numbers(write_record: Write) -> None:
    check = {"loadgen_p90_ms": 0.5, "p90_ms": 0.25, "noise_ms": 0.01, "agree": False}
    (line,) = remarks(record_of(write_record(), {"loadgen": check}))
    assert "p90 0.500\u202fms, here 0.250\u202fms; they DO NOT agree" in line
    assert remarks(record_of(write_record())) == []
