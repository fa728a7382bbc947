"""``report`` on the command line: where the page goes, and how it fails."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.report import build_report, write_report
from toolchain.cli import app


@pytest.fixture
def run(tmp_path: Path) -> Path:
    network = {"top1": 90.0, "parameters": 10, "macs": 100, "size_bytes": 40,
               "latency_ms": {"p50": 1.0, "p90": 2.0}}  # fmt: skip
    student: dict[str, Any] = {**network, "onnx": "student.onnx"}
    report = build_report(
        name="tiny", seed=0, teacher=network, student=student, goals={"macs": 0.5},
        recipe={"data": {}},
    )  # fmt: skip
    write_report(report, tmp_path / "tiny-run")
    return tmp_path / "tiny-run"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *(str(argument) for argument in arguments)])


def test_it_writes_the_page_and_names_it(run: Path, tmp_path: Path) -> None:
    result = call(run, "--out", tmp_path / "a" / "b.html")
    assert (result.exit_code, result.stdout.strip()) == (0, str(tmp_path / "a" / "b.html"))
    assert "the goal is missed" in (tmp_path / "a" / "b.html").read_text()


def test_the_page_goes_beside_unless_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(run).exit_code == 0
    assert (tmp_path / "page.html").is_file()


def test_open_asks_the_browser(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: asked.append(url) or True)
    page = tmp_path / "page.html"
    assert call(run, "--out", page, "--open").exit_code == 0
    assert asked == [page.as_uri()]


def test_no_browser_is_said_after_the_page_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    page = tmp_path / "page.html"
    result = call(run, "--out", page, "--open")
    assert result.exit_code == 1
    assert "no browser was found" in result.stderr
    assert page.is_file()


@pytest.mark.parametrize("source", ["nowhere", "empty"])
def test_a_wrong_source_is_one_line_and_status_1(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = call(tmp_path / source, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(tmp_path / source) in result.stderr
    assert not (tmp_path / "page.html").exists()
