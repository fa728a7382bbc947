"""Every delta against arithmetic done by hand; goals; the files that are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import (
    build_report,
    evaluate_goals,
    goal_rows,
    goals_met,
    markdown,
    summary_rows,
    write_report,
)
from deploy.errors import ConfigError, StorageError

TEACHER = {"top1": 90.0, "parameters": 1000, "macs": 4_000_000, "size_bytes": 4000,
           "latency_ms": {"p50": 0.8, "p90": 1.0}}  # fmt: skip
STUDENT = {"top1": 89.4, "parameters": 400, "macs": 1_000_000, "size_bytes": 500,
           "latency_ms": {"p50": 0.2, "p90": 0.4}, "onnx": "bundle/ort-cpu.onnx"}  # fmt: skip
GOALS = {"macs": 0.5, "accuracy_drop": 0.5, "latency": 0.25, "latency_ms": 0.3, "parameters": None}


def made(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "name": "net", "seed": 3, "teacher": TEACHER, "student": STUDENT, "goals": GOALS,
        "stages": [{"name": "pqk", "seconds": 61.0, "metrics": {"top1": 89.41234, "steps": 1200}},
                   {"name": "export", "seconds": 2.0, "metrics": {}}],
        "environment": {"cpu_model": "Fast", "versions": {"numpy": "2", "torch": None},
                        "governor": None, "missing": {"governor": "no file"}},
        "method": ["one thread, batch 1"], "notes": ["Gemm head runs in float: on purpose"],
    }  # fmt: skip
    return build_report(**{**arguments, **changes})


def test_comparison() -> None:
    delta = made()["comparison"]
    assert delta["macs_share"] == 0.25
    assert delta["times_fewer_macs"] == 4.0
    assert delta["times_fewer_parameters"] == 2.5
    assert delta["times_smaller"] == 8.0
    assert delta["times_faster_p50"] == pytest.approx(4.0)
    assert delta["times_faster_p90"] == pytest.approx(2.5)
    assert delta["top1_points"] == pytest.approx(-0.6)


def test_goals() -> None:
    report = made()
    goals = report["goals"]
    assert set(goals) == {"macs", "accuracy_drop", "latency", "latency_ms"}
    assert goals["macs"] == {"asked": 0.5, "reached": 0.25, "met": True}
    assert goals["accuracy_drop"]["reached"] == pytest.approx(0.6)
    assert [name for name, goal in goals.items() if not goal["met"]] == ["accuracy_drop"]
    assert not goals_met(report)
    assert goals_met(made(goals={}))


def test_a_goal_that_is_just_reached_is_met() -> None:
    student = {**STUDENT, "top1": 89.7}  # 90.0 - 89.7 is 0.2999... or 0.3000...1 in binary
    assert evaluate_goals({"accuracy_drop": 0.3}, TEACHER, student)["accuracy_drop"]["met"]
    assert evaluate_goals({"macs": 0.25}, TEACHER, STUDENT)["macs"]["met"]
    assert evaluate_goals({"accuracy_drop": 0.0}, TEACHER, TEACHER)["accuracy_drop"]["met"]


@pytest.mark.parametrize("bad", [None, math.nan])
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_what_is_not_known_meets_nothing(bad: float | None, who: str) -> None:
    blank = {"top1": bad, "parameters": bad, "macs": bad, "latency_ms": {"p50": bad}}
    pair = (blank, STUDENT) if who == "teacher" else (TEACHER, blank)
    lax = {"macs": 9.0, "parameters": 9.0, "accuracy_drop": 99.0, "latency": 9.0}
    for goal in evaluate_goals(lax, *pair).values():
        assert goal["reached"] is None
        assert goal["met"] is False


def test_unknown_goal() -> None:
    with pytest.raises(ConfigError, match=r"unknown.*speed.*choose from"):
        evaluate_goals({"speed": 1.0}, TEACHER, STUDENT)


@given(st.floats(0.01, 1), st.integers(1, 10**9), st.integers(1, 10**9))
def test_macs_goal_is_the_share_kept(asked: float, teacher: int, student: int) -> None:
    pair = ({**TEACHER, "macs": teacher}, {**STUDENT, "macs": student})
    goal = evaluate_goals({"macs": asked}, *pair)["macs"]
    assert goal["met"] == (student / teacher <= asked)
    assert goal["reached"] == student / teacher


def test_lacking_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"teacher lacks \['macs'\]"):
        made(teacher={key: value for key, value in TEACHER.items() if key != "macs"})
    with pytest.raises(ConfigError, match="lacks 'onnx'"):
        made(student=TEACHER)


def test_summary_rows() -> None:
    rows = summary_rows(made())
    assert rows[0] == ("top-1", "90.00 %", "89.40 %", "-0.60 points")
    assert rows[2] == ("MACs", "4,000,000", "1,000,000", "4.00 × fewer")
    assert rows[4] == ("latency, median", "0.800 ms", "0.200 ms", "4.00 × faster")
    assert [row[0] for row in rows] == ["top-1", "parameters", "MACs", "bytes on disk",
                                        "latency, median", "latency, p90"]  # fmt: skip


def test_a_slower_student_is_called_slower() -> None:
    rows = summary_rows(made(student={**STUDENT, "latency_ms": {"p50": 1.6, "p90": None}}))
    assert rows[4][3] == "2.00 × slower"
    assert rows[5] == ("latency, p90", "1.000 ms", "not known", "not known")


def test_goal_rows() -> None:
    assert goal_rows(made())[:2] == [
        ("MACs kept", "at most 50.0%", "25.0%", "met"),
        ("drop in top-1", "at most 0.50 points", "0.60 points", "MISSED"),
    ]


def test_markdown_reads() -> None:
    page = markdown(made())
    assert page.startswith(
        "# net\n\nThe student has 4.00 × fewer MACs, is 8.00 × smaller, is 4.00 × faster"
    )
    assert "0.60 points below its teacher" in page
    assert "**Missed: drop in top-1.**" in page
    assert "The chain, 1 min 03 s in all" in page
    assert "| pqk | 1 min 01 s | top1 89.41, steps 1,200 |" in page
    for words in ("Gemm head runs in float", "one thread, batch 1", "seed: 3", "numpy 2"):
        assert words in page
    assert "Every goal is met." in markdown(made(goals={"macs": 0.5}))
    assert "No goal was set." in markdown(made(goals={}))


def test_written_files(tmp_path: Path) -> None:
    student = {**STUDENT, "onnx": str(tmp_path / "export" / "student.onnx"),
               "top1": np.float64(89.4), "extra": math.nan}  # fmt: skip
    folder = tmp_path / "report"
    as_json, as_text = write_report(made(student=student, peak=np.int64(3)), folder)
    report = json.loads(as_json.read_text(), parse_constant=pytest.fail)
    assert (folder / report["student"]["onnx"]).resolve() == (
        tmp_path / "export" / "student.onnx").resolve()  # fmt: skip
    assert report["student"]["top1"] == 89.4
    assert report["student"]["extra"] is None
    assert report["peak"] == 3
    for who in ("teacher", "student"):
        assert set(TEACHER) <= set(report[who])
    assert report["goals"]["macs"] == {"asked": 0.5, "reached": 0.25, "met": True}
    assert as_text.read_text() == markdown(report)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report.md"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="report cannot be written"):
        write_report(made(), tmp_path / "file")
