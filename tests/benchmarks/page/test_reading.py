"""Sources: found, put together, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.page.reading import read_sources
from deploy.errors import CompressDeployError, ConfigError, DataError, StorageError

Write = Callable[..., Path]


def test_a_run_with_logs_and_manifest(write_run: Write) -> None:
    (run,) = read_sources([write_run("net")]).runs
    assert run.report["name"] == "net"
    assert [(log.stage, len(log.rows), log.unreadable) for log in run.logs] == [("pqk", 11, 0)]
    assert run.manifest["seeds"] == {"run": 3, "split": 7}


def test_logs_are_in_the_order_of_the_chain_also_of_stages_of_one_name(write_run: Write) -> None:
    run = write_run("net")
    report = json.loads((run / "report.json").read_text())
    names = ["recover-ff.jsonl", "pqk-1a2b.jsonl", "recover-0a.jsonl"]
    for steps, name in enumerate(names, 1):
        lines = [json.dumps({"kind": "step", "step": step}) for step in range(steps)]
        (run / "logs" / name).write_text("\n".join(lines))
    report["stages"] = [
        {"name": "teacher"},
        *({"name": one.split("-")[0], "log": one} for one in names),
    ]
    (run / "report.json").write_text(json.dumps(report))
    logs = read_sources([run]).runs[0].logs
    assert [(log.stage, len(log.rows)) for log in logs] == [
        ("recover", 1),
        ("pqk", 2),
        ("recover", 3),
    ]
    for stage in report["stages"]:  # one of an older version
        stage.pop("log", None)
    (run / "report.json").write_text(json.dumps(report))
    assert [log.stage for log in read_sources([run]).runs[0].logs] == ["recover", "recover", "pqk"]


def test_a_folder_of_runs_each_once(write_run: Write, tmp_path: Path) -> None:
    first, second = write_run("a"), write_run("b")
    found = read_sources([tmp_path, first, second / "report.json"])
    assert sorted(run.report["name"] for run in found.runs) == ["a", "b"]


def test_artifacts_and_hidden_folders_are_not_looked_into(write_run: Write, tmp_path: Path) -> None:
    write_run("a")
    write_run("b", folder="artifacts")
    write_run("c", folder=".partial")
    assert [run.report["name"] for run in read_sources([tmp_path]).runs] == ["a"]


def test_a_record_goes_to_the_run_it_measured(
    write_run: Write, write_record: Write, tmp_path: Path
) -> None:
    run = write_run("net")
    own, other = write_record(run), write_record(name="other.json")
    found = read_sources([run, own, other])
    assert [record.path for record in found.runs[0].records] == [own]
    assert [record.path for record in found.records] == [other]
    in_folder = read_sources([tmp_path])
    assert len(in_folder.runs[0].records) == len(in_folder.records) == 1


def test_a_record_stays_with_its_run_when_an_engine_was_added(
    write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    record = write_record(run)
    manifest = run / "bundle" / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["files"]["net.plan"] = {"sha256": "3" * 64}
    manifest.write_text(json.dumps(changed))
    assert len(read_sources([run, record]).runs[0].records) == 1


def test_half_a_line_of_a_log_is_counted(write_run: Write) -> None:
    run = write_run("net")
    with (run / "logs" / "pqk-1a2b.jsonl").open("a") as log:
        log.write('{"kind": "st')
    assert read_sources([run]).runs[0].logs[0].unreadable == 1


def test_what_is_no_source_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "other.json").write_text('{"format": "something"}')
    cases: list[tuple[str, type[CompressDeployError], str]] = [
        ("nowhere", ConfigError, "does not exist"),
        ("empty", ConfigError, "holds no run and no record"),
        ("text.json", StorageError, "cannot be read"),
        ("other.json", DataError, "not a record"),
    ]
    for name, kind, said in cases:
        with pytest.raises(kind, match=said) as caught:
            read_sources([tmp_path / name])
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_a_damaged_report_and_manifest_are_named(write_run: Write) -> None:
    run = write_run("net")
    (run / "bundle" / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match=r"manifest\.json: cannot be read"):
        read_sources([run])
    (run / "report.json").write_text('{"name": "net"}')
    with pytest.raises(StorageError, match="seed is missing"):
        read_sources([run])


def test_the_condition_names_what_must_be_equal(write_record: Write) -> None:
    (record,) = read_sources([write_record()]).records
    assert record.condition == "board, ort-cpu, 1 thread, batch 1, single-stream, power mode 15W"
