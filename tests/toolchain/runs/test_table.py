"""The table of results: its numbers against numpy's, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report import build_report, write_report
from deploy.errors import ConfigError, StorageError
from toolchain.runs.table import write_table

COLUMNS = 18


def network(top1: float, macs: int, p50: float, **more: Any) -> dict[str, Any]:
    return {
        "top1": top1,
        "macs": macs,
        "parameters": macs // 10,
        "size_bytes": macs // 2,
        "latency_ms": {"p50": p50, "p90": 1.5 * p50},
        **more,
    }


def write_run(
    out: Path,
    name: str,
    seed: int,
    *,
    top1: float = 88.0,
    p50: float = 0.3,
    epochs: tuple[float, ...] = (6.0, 3.5),
    cpu: str = "a CPU",
    goals: dict[str, float] | None = None,
    fingerprint: str = "0123456789abcdef",
) -> dict[str, Any]:
    stages = [
        {"name": "teacher", "seconds": 1.5, "metrics": {}, "config": {"stage": "teacher"}},
        *(
            {"name": "train", "seconds": 100.25, "metrics": {}, "config": {"epochs": each}}
            for each in epochs
        ),
    ]
    report = build_report(
        name=name,
        seed=seed,
        teacher=network(90.0, 40_000_000, 0.75),
        student=network(top1, 19_000_000, p50, onnx="student.onnx"),
        goals=goals or {},
        stages=stages,
        environment={
            "cpu_model": cpu,
            "usable_cores": 2,
            "python": "3.11.7",
            "versions": {"torch": "2.13.0", "tensorrt": None},
        },
        method=["bytes: the ONNX file"],
        date="2026-09-01T12:00:00+00:00",
        data_fingerprint=fingerprint,
        recipe={
            "name": name,
            "seed": seed,
            "threads": None,
            "model": {"checkpoint": f"/somewhere/{seed}/teacher.safetensors", "file": None},
            "data": {"kind": "parquet", "root": f"/somewhere/{seed}/pictures"},
            "stages": [{"stage": "train", "epochs": each} for each in epochs],
        },
    )
    write_report(report, out / f"{name}-{seed:08x}")
    return report


def table(text: str, number: int = 0) -> list[list[str]]:
    """Cells of the page's tables, without head and rule."""
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("| ---")]
    rows = []
    for line in lines[starts[number] + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def written(tmp_path: Path, *folders: Path) -> str:
    out = tmp_path / "results" / "table.md"
    write_table(list(folders), out)
    return out.read_text()


def test_one_run_is_told_without_a_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "plain", 3, top1=89.25, p50=0.25)
    text = written(tmp_path, tmp_path / "runs")
    ((*cells,),) = table(text)
    assert len(cells) == COLUMNS
    assert cells == [
        "plain",
        "1",
        "3",
        "90.00",
        "89.25",
        "0.75",
        "40,000,000 → 19,000,000",
        "2.11",
        "4,000,000 → 1,900,000",
        "2.11",
        "20,000,000 → 9,500,000",
        "2.11",
        "0.750 → 0.250",
        "1.125 → 0.375",
        "3.00",
        "3.00",
        "9.5",
        "202",
    ]
    assert "±" not in text
    assert "## Differences" not in text


def test_seeds_make_a_mean_and_a_deviation(tmp_path: Path) -> None:
    top1, p50 = [88.1, 87.4, 88.9], [0.21, 0.26, 0.22]
    for seed in range(3):
        write_run(tmp_path / "runs", "plain", seed, top1=top1[seed], p50=p50[seed])
    ((*cells,),) = table(written(tmp_path, tmp_path / "runs"))
    assert cells[1:3] == ["3", "0, 1, 2"]
    drop, faster = 90.0 - np.array(top1), 0.75 / np.array(p50)
    for cell, values, digits in ((4, top1, 2), (5, drop, 2), (14, faster, 2)):
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        assert cells[cell] == f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    assert cells[12] == f"0.750 → {np.mean(p50):.3f} ± {np.std(p50, ddof=1):.3f}"


def test_recipes_are_compared_on_the_same_seed(tmp_path: Path) -> None:
    ours, theirs = {0: 88.5, 1: 88.0, 2: 87.0}, {1: 87.0, 2: 87.5, 5: 10.0}
    for seed, top1 in ours.items():
        write_run(tmp_path / "a", "ours", seed, top1=top1, p50=0.2)
    for seed, top1 in theirs.items():
        write_run(tmp_path / "b", "theirs", seed, top1=top1, p50=0.3)
    text = written(tmp_path, tmp_path / "a", tmp_path / "b")
    assert [row[0] for row in table(text)] == ["ours", "theirs"]
    ((name, n, points, by_seed, faster),) = table(text, 1)
    differences = np.array([88.0 - 87.0, 87.0 - 87.5])
    assert name == "ours minus theirs"
    assert n == "2"
    assert points == f"{differences.mean():+.2f} ± {differences.std(ddof=1):.2f}"
    assert by_seed == "1: +1.00, 2: -0.50"
    assert faster == "1.50 ± 0.00"


def test_only_what_has_the_same_data_is_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "ours", 0, fingerprint="one")
    write_run(tmp_path / "runs", "theirs", 0, fingerprint="another")
    text = written(tmp_path, tmp_path / "runs")
    assert "## Differences" not in text
    assert "fingerprint one" in text
    assert "fingerprint another" in text


def test_other_settings_are_another_row_and_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "plain", 0, epochs=(6.0, 3.0))
    write_run(tmp_path / "b", "plain", 0, epochs=(6.0, 4.0))
    text = written(tmp_path, tmp_path / "a", tmp_path / "b")
    assert [row[0] for row in table(text)] == ["plain (1)", "plain (2)"]
    assert [row[16] for row in table(text)] == ["9", "10"]
    assert "- plain (1): stages.1.epochs 3.0\n- plain (2): stages.1.epochs 4.0" in text


def test_the_page_says_where_its_numbers_are_from(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "plain", 0, cpu="one CPU")
    write_run(tmp_path / "runs", "plain", 1, cpu="another CPU")
    text = written(tmp_path, tmp_path / "runs")
    for line in (
        "- data: parquet `pictures`, fingerprint 0123456789ab",
        "- hardware: one CPU, 2 cores",
        "- hardware: another CPU, 2 cores",
        "- versions: python 3.11.7, torch 2.13.0",
        "- measured: 2026-09-01",
        "- written by: `compress-deploy results runs --out table.md`",
        "- bytes: the ONNX file",
    ):
        assert line in text.splitlines()
    assert str(tmp_path) not in text


def test_missed_goals_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "plain", 0, top1=88.0, goals={"accuracy_drop": 1.0, "macs": 0.5})
    text = written(tmp_path, tmp_path / "runs")
    assert "- plain, seed 0: accuracy_drop at most 1 asked, 2 reached" in text
    assert "plain, seed 0: macs" not in text


@pytest.mark.parametrize(
    ("goals", "verdict"),
    [({"macs": 0.5}, "Every goal that was asked is met."), ({}, "No goal was asked.")],
)
def test_nothing_missed_is_told_too(tmp_path: Path, goals: dict[str, float], verdict: str) -> None:
    write_run(tmp_path / "runs", "plain", 0, goals=goals)
    assert verdict in written(tmp_path, tmp_path / "runs")


def test_a_report_counts_once_and_artifacts_do_not(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, "plain", 0)
    write_run(runs / "artifacts", "plain", 1)
    write_run(runs / ".half", "plain", 2)
    ((*cells,),) = table(written(tmp_path, runs, runs, runs / "plain-00000000"))
    assert cells[1:3] == ["1", "0"]


def test_the_same_recipe_and_seed_twice_is_an_error(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_run(tmp_path / folder, "plain", 7)
    with pytest.raises(ConfigError, match="both plain with seed 7"):
        written(tmp_path, tmp_path / "a", tmp_path / "b")


def test_folders_without_a_report_are_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "full", "plain", 0)
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "holds no report"), ("absent", "is not a folder")):
        with pytest.raises(ConfigError, match=said) as caught:
            written(tmp_path, tmp_path / "full", tmp_path / name)
        assert "\n" not in str(caught.value)


def broken(report: dict[str, Any], *keys: str, value: Any) -> str:
    node = report
    for key in keys[:-1]:
        node = node[key]
    if value is None:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return json.dumps(report)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("seed",), None, "seed is missing"),
        (("name",), 3, "name is missing or no str"),
        (("recipe", "data"), None, "recipe.data is missing"),
        (("student", "top1"), None, "student.top1 is None"),
        (("student", "top1"), "high", "student.top1 is 'high'"),
        (("teacher", "macs"), 0, "teacher.macs is 0 and not above 0"),
        (("student", "latency_ms"), {"p50": 0.3}, "student.latency_ms.p90 is None"),
        (("goals",), [], "goals is missing or no dict"),
        (("goals",), {"macs": {"asked": 0.5}}, "goals.macs lacks"),
        (("stages",), ["train"], "stages holds what is no dict"),
    ],
)
def test_a_report_that_lacks_something_is_one_line(
    tmp_path: Path, keys: tuple[str, ...], value: Any, said: str
) -> None:
    write_run(tmp_path / "runs", "plain", 0)
    (path,) = (tmp_path / "runs").rglob("report.json")
    path.write_text(broken(json.loads(path.read_text()), *keys, value=value))
    with pytest.raises(StorageError) as caught:
        written(tmp_path, tmp_path / "runs")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", ["", "{\n'no': json}", "[]"])
def test_a_report_that_is_no_report_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "report.json").write_text(text)
    with pytest.raises(StorageError) as caught:
        written(tmp_path, tmp_path / "runs")
    assert "\n" not in str(caught.value)


def test_a_table_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "plain", 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write_table([tmp_path / "runs"], tmp_path / "file" / "table.md")
