"""The page as it is written: whole, offline, escaped, and saying every goal, delta and flaw."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page.making import write_page
from deploy.errors import ConfigError, MissingDependency, StorageError

Write = Callable[..., Path]
Parse = Callable[[str], Any]
EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def page(tmp_path: Path, parse: Parse) -> Callable[..., Any]:
    """Writes the page of these sources and reads it back."""

    def make(*sources: Path) -> Any:
        out = write_page(sources, tmp_path / "out" / "page.html")
        reader = parse(out.read_text(encoding="utf-8"))
        reader.html = out.read_text(encoding="utf-8")
        return reader

    return make


def plain(texts: list[str]) -> str:
    return " ".join(texts).replace("\u202f", " ").replace("\u2212", "-")


def test_it_loads_nothing_and_is_well_formed(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    read = page(run, write_record(run), write_record(name="other.json"))
    for tag, attributes in read.elements:
        for name in ("src", "href", "data", "poster", "action", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith("#"), f"<{tag} {name}={value!r}> leaves the page"
        assert tag not in ("img", "iframe", "object", "embed", "link", "base")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in read.html
    assert "url(" not in read.html
    assert not re.search(r"https?://", read.html)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in read.elements:
        assert attributes.get("href", "#")[1:] in ["", *ids]


def test_only_its_own_script_may_run(page: Callable[..., Any], write_run: Write) -> None:
    html = page(write_run("net")).html
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.replace("&#39;", "'").replace("&#43;", "+")
    assert "default-src 'none'" in html


def test_light_dark_and_print_are_there(page: Callable[..., Any], write_run: Write) -> None:
    html = page(write_run("net")).html
    assert "@media (prefers-color-scheme: dark)" in html
    assert ':root[data-theme="dark"]' in html
    assert "@media print" in html
    style = html[html.index("<style>") : html.index("</style>")]
    blocks = re.findall(r"(?::root|data-theme=\"dark\"\])[^{}]*\{([^{}]*--bg[^{}]*)\}", style)
    names = [set(re.findall(r"(--[\w-]+):", block)) for block in blocks]
    assert len(names) == 4  # light, dark by preference, dark by choice, print
    assert names[0] == names[1] == names[2]
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used <= names[0]


def test_every_goal_is_there_and_the_missed_are_marked(
    page: Callable[..., Any], write_run: Write
) -> None:
    read = page(write_run("net", goals={"macs": 0.5, "accuracy_drop": 0.5, "latency_ms": 0.1}))
    assert plain(read.inside("met")) == "✓ met MACs kept 25.0 % at most 50.0 %"
    missed = plain(read.inside("missed"))
    assert missed.count("✗ MISSED") == 2
    assert "drop in top-1 0.60 points at most 0.50 points" in missed
    assert "median latency 0.200 ms at most 0.100 ms" in missed
    assert "2 of 3 goals missed" in plain(read.inside("badge"))


def test_met_goals_and_no_goals(page: Callable[..., Any], write_run: Write) -> None:
    met = page(write_run("net", goals={"macs": 0.5}))
    assert (met.inside("missed"), plain(met.inside("badge"))) == ([], "the goal is met")
    none = page(write_run("none", goals={}))
    assert plain(none.inside("badge")) == "no goal was set"


def test_deltas_equal_arithmetic(page: Callable[..., Any], write_run: Write) -> None:
    read = page(write_run("net"))
    cards = plain(read.inside("card"))
    assert "89.40 % teacher 90.00 % -0.60 points" in cards
    assert "0.200 ms teacher 0.800 ms 4.00 × faster" in cards
    assert "500 B teacher 4.00 kB 8.00 × smaller" in cards
    assert "1.00 M teacher 4.00 M 4.00 × fewer" in cards
    text = plain([read.text])
    assert "parameters 1 000 400 2.50 × fewer 40.0 %" in text
    assert "latency, p90 1.00 ms 0.400 ms 2.50 × faster 40.0 %" in text
    assert "at 89.40 % top-1: 0.60 points below its teacher." in text


def test_a_worse_student_is_said_to_be_worse(page: Callable[..., Any], write_run: Write) -> None:
    student = {"top1": 90.5, "parameters": 2000, "macs": 8_000_000, "size_bytes": 8000,
               "latency_ms": {"p50": 1.6, "p90": 2.0}, "onnx": "bundle/ort-cpu.onnx"}  # fmt: skip
    read = page(write_run("net", student=student))
    assert plain(read.inside("better")).startswith(
        "top-1 accuracy 90.50 % teacher 90.00 % +0.50 points"
    )
    assert plain(read.inside("worse")).count("2.00 × ") == 3
    assert "2.00 × slower" in plain(read.inside("worse"))


def test_names_cannot_break_out(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    first = write_run(EVIL, notes=[EVIL], method=[EVIL], environment={"cpu_model": EVIL})
    record = write_record(first, device={"name": EVIL, "kind": "ssh"}, checks={"warnings": [EVIL]})
    second = write_run(EVIL, recipe={"data": {"title": EVIL}})
    (second / "logs" / f"{EVIL.replace('/', '')}-1.jsonl").write_text(
        json.dumps({"kind": "step", "step": 1, EVIL: 1.0})
    )
    read = page(first, second, record)
    assert read.html.count("<script>") == 1
    assert "<script>alert" not in read.html
    assert read.text.count("alert(1)") > 5
    assert [tag for tag, _ in read.elements].count("script") == 1


def test_one_run_has_all_its_parts(page: Callable[..., Any], write_run: Write) -> None:
    read = page(write_run("net"))
    titles = read.inside("section-title")
    assert titles == ["Every number", "Accuracy against cost", "Latency", "Layers", "Training",
                      "Stages", "Proof of the export", "How it was measured",
                      "Where it was measured"]  # fmt: skip
    text = plain([read.text])
    for said in ("run 3, split 7", "1 min 1 s", "Fast", "governor: not known: no file", "layer removed",
                 "latency: one thread, batch 1", "0123456789abcdef", "Conv head runs in float: on purpose",
                 "A run folder keeps percentiles"):  # fmt: skip
        assert said in text


def test_an_export_that_is_not_its_network_is_flagged(
    page: Callable[..., Any], write_run: Write
) -> None:
    read = page(write_run("net"))
    assert "Not verified the student's file" in plain(read.inside("flag"))
    text = plain([read.text])
    assert "teacher verified 200 100.00 % ±0.00 points" in text
    assert "student FAILED 200 95.00 % -1.50 points 0.300" in text


def test_a_record_brings_distributions_times_and_intervals(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    read = page(run, write_record(run))
    text = plain([read.text])
    assert "A run folder keeps percentiles" not in text
    assert "Histogram of latencies" in text
    assert "teacher n = 1 000, student n = 1 000." in text
    assert "3.90 to 4.10 ×" in text
    assert "32.0 8.00 4.00 ×" in text  # the stem's microseconds
    assert "1 warning" in plain(read.inside("warn"))
    assert "latencies scatter" in plain(read.inside("warn"))
    assert "power mode 15W" in text


def test_energy_is_shown_where_it_was_measured_and_only_there(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    record = write_record(run)
    assert "energy per inference" not in page(run, record).text
    data = json.loads(record.read_text())
    for who, joules in (("teacher", 0.008), ("student", 0.002)):
        data["models"][who]["energy"] = {"total_j": joules, "net_j": joules / 2, "why": None}
    record.write_text(json.dumps(data))
    read = page(run, record)
    assert "2.00 mJ teacher 8.00 mJ 4.00 × less" in plain(read.inside("card"))
    assert "Accuracy against energy" in read.text
    data["models"]["student"]["energy"] = {"total_j": None, "why": "two updates only"}
    record.write_text(json.dumps(data))
    assert "two updates only" in plain(page(run, record).inside("flag"))


@pytest.mark.parametrize("status", ["partial", "invalid"])
def test_records_that_are_not_whole_are_flagged_and_not_compared(
    status: str, page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    because = ["the board throttled"] if status == "invalid" else []
    own = write_record(run, status=status, invalid_because=because)
    alone = write_record(name="other.json", status=status, invalid_because=because)
    read = page(run, own, alone)
    flags = plain(read.inside("bad"))
    assert f"{status.capitalize()} record" in flags
    assert f"{status.upper()}" in plain([read.text])
    assert all(reason in flags for reason in because)
    assert "power mode 15W." not in plain(read.inside("caption"))  # not among the trade-offs
    assert "median latency 0.2" in plain(read.inside("card"))  # the run's own number stays
    assert "99th percentile" not in plain(read.inside("card"))


def test_several_runs_are_compared_first(page: Callable[..., Any], write_run: Write) -> None:
    student = {"top1": 89.9, "parameters": 800, "macs": 3_000_000, "size_bytes": 900,
               "latency_ms": {"p50": 0.6, "p90": 0.8}, "onnx": "bundle/ort-cpu.onnx"}  # fmt: skip
    good = {"accuracy_drop": 1.0}
    read = page(
        write_run("small", goals=good),
        write_run("large", student=student),
        write_run("small", seed=4),
    )
    assert read.inside("title")[0] == "Comparison"
    assert "2 of 3 runs missed a goal" in plain(read.inside("badge"))
    text = read.text
    assert "small, seed 3" in text
    assert "small, seed 4" in text
    assert "MISSED: drop in top-1" in text
    links = [a["href"] for tag, a in read.elements if tag == "a"]
    assert {"#part-1", "#part-2", "#part-3"} <= set(links)
    front = next(text for text in read.inside("caption") if text.startswith("On the front"))
    assert "teacher" in front
    assert "large" in front


def test_several_records_of_a_run_are_side_by_side(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    first = write_record(run)
    second = write_record(run, name="second.json", device={"name": "bench2", "kind": "ssh"})
    third = write_record(run, name="third.json", status="partial")
    read = page(run, first, second, third)
    assert "Measurements" in read.inside("section-title")
    measured = [title for title in read.inside("section-title") if title.startswith("Measured:")]
    assert len(measured) == 3
    assert "PARTIAL" in read.text
    both = page(run, write_run("other"), first, third)
    assert "2 runs and 2 records" in plain(both.inside("subtitle"))


def test_records_alone(page: Callable[..., Any], write_record: Write) -> None:
    path = write_record()
    models = json.loads(path.read_text())["models"]
    times = models["teacher"]["latency_ms"]["p50"] / models["student"]["latency_ms"]["p50"]
    read = page(path)
    assert f"The student runs {times:.2f} × faster in the median" in plain([read.text])
    assert "board, ort-cpu, 1 thread, batch 1, single-stream" in read.text
    single = write_record(name="one.json")
    data = json.loads(single.read_text())
    del data["models"]["teacher"]
    data["speedup"] = None
    single.write_text(json.dumps(data))
    assert "Only the student was measured" in page(single).text


def test_numbers_that_are_not_known_are_dashes(page: Callable[..., Any], write_run: Write) -> None:
    nothing = {
        "top1": None,
        "parameters": None,
        "macs": None,
        "size_bytes": None,
        "latency_ms": None,
    }
    student = {**nothing, "onnx": "bundle/ort-cpu.onnx"}
    read = page(write_run("net", teacher=nothing, student=student, goals={"macs": 0.5}))
    assert plain(read.inside("missed")).startswith("✗ MISSED MACs kept not known")
    assert "nan" not in read.text.lower().split()
    assert "Accuracy against cost" not in read.text


def test_a_run_without_bundle_and_logs_is_still_shown(
    page: Callable[..., Any], write_run: Write, tmp_path: Path
) -> None:
    whole = write_run("net")
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "report.json").write_bytes((whole / "report.json").read_bytes())
    titles = page(lone).inside("section-title")
    assert "Every number" in titles
    assert "Layers" not in titles
    assert "Training" not in titles


def test_many_samples_and_steps_keep_the_page_small(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    record = write_record(run)
    data = json.loads(record.read_text())
    for model in data["models"].values():
        model["latency_ms"]["samples"] = [0.5 + (i * 7919 % 1000) / 1000 for i in range(40_000)]
    record.write_text(json.dumps(data))
    rows = [{"kind": "step", "step": i, "loss": 1 / i, "kl": 2 / i} for i in range(1, 20_000)]
    log = "\n".join(json.dumps(row) for row in rows)
    (run / "logs" / "pqk-1a2b.jsonl").write_text(log)
    before = [model["latency_ms"]["p50"] for model in data["models"].values()]
    read = page(run, record)
    assert len(read.html) < 250_000
    for value in before:
        assert f"{value:.3f} ms" in plain([read.text])


def test_nothing_half_written_and_one_line_errors(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run("net")
    with pytest.raises(ConfigError, match="does not exist"):
        write_page([tmp_path / "nowhere"], tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_page([run], tmp_path / "file" / "page.html")
    assert not list(tmp_path.glob("*.html"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency, match=r"compress-deploy\[report\]"):
        write_page([run], tmp_path / "page.html")
    assert not list(tmp_path.rglob("*.partial"))


def test_the_example_page_is_offline_and_knows_no_machine(parse: Parse) -> None:
    html = (Path(__file__).parents[3] / "docs" / "example-report.html").read_text(encoding="utf-8")
    read = parse(html)
    assert "Comparison" in read.inside("title")
    assert not re.search(r"https?://", html)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|mnt)/", html)
    assert len(html.encode()) < 1_000_000


def test_two_records_of_the_same_conditions_are_told_apart_by_their_moment(
    page: Callable[..., Any], write_run: Write, write_record: Write
) -> None:
    run = write_run("net")
    moments = ["2026-01-02T03:04:05+00:00", "2026-01-02T04:05:06+00:00"]
    records = [write_record(run, f"{n}.json", created=m) for n, m in enumerate(moments)]
    read = page(run, *records)
    measured = [title for title in read.inside("section-title") if title.startswith("Measured:")]
    assert len(set(measured)) == 2
    assert [title[-19:] for title in measured] == ["2026-01-02 03:04:05", "2026-01-02 04:05:06"]
