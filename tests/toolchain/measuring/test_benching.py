"""The verbs `bench` and `compare` as a person uses them, on a model of one layer."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from benchmarks.records.record import read_record, write_record
from deploy.bundle import Bundle, write_bundle
from deploy.devices.lock import only_one
from deploy.errors import ConfigError, DeviceError
from deploy.sessions.ort import OrtCpuSession
from toolchain.cli import app
from toolchain.commands.options import numbers, words
from toolchain.measuring.benching import record_paths

EXAMPLE = Path(__file__).parents[2] / "benchmarks" / "records" / "example_record.json"
QUICK = ("--profile", "quick", "--duration", "0.02", "--queries", "64", "--no-layers")
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where measurements are kept apart

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return invoke


def model(path: Path, scale: float) -> Path:
    """logits = mean over pixels, times a positive scale: a decision that every scale shares."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Mul", ["f", "s"], ["logits"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 4, 4])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    weights = [numpy_helper.from_array(np.float32(scale), "s")]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    student, teacher = model(tmp_path / "s.onnx", 2.0), model(tmp_path / "t.onnx", 1.0)
    inputs = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 4), dtype=np.uint8)
    outputs = OrtCpuSession(student).run({"x": inputs.astype(np.float32) / np.float32(255)})
    return write_bundle(
        tmp_path / "run" / "bundle", name="net", targets={"ort-cpu": student}, input_name="x",
        input_shape=(2, 4, 4), output_name="logits", classes=["a", "b"], mean=(0.0, 0.0),
        std=(1.0, 1.0), sample_inputs=inputs, sample_outputs=outputs["logits"], recipe={},
        seeds={}, versions={}, files={"teacher.onnx": teacher},
    )  # fmt: skip


def test_a_run_makes_a_table_and_a_record(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    made = run("bench", bundle.folder.parent, *QUICK, "--out", "r.json")
    assert made.exit_code == 0, made.output
    for text in ("net on local: single-stream", "latency p50", "95 % interval", "throughput",
                 "harness:", "no energy: not asked for", "record  r.json"):  # fmt: skip
        assert text in made.stdout, text
    record = read_record(tmp_path / "r.json")
    assert set(record["models"]) == {"teacher", "student"}


def test_two_do_not_measure_at_once(run: Run, bundle: Bundle) -> None:
    with only_one():
        refused = run("bench", bundle.folder, *QUICK)
    assert refused.exit_code == 1
    assert "is measuring here already" in refused.stderr


def test_without_out_records_gather(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    made = run("bench", bundle.folder, *QUICK, "--models", "student", "--json")
    assert made.exit_code == 0
    path = next((tmp_path / "records").glob("net-single-stream-*.json"))
    assert json.loads(made.stdout) == read_record(path)


def test_several_batches_give_a_record_each(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    made = run("bench", bundle.folder, *QUICK, "--models", "student", "--batch", "1,4",
               "--out", "r.json")  # fmt: skip
    assert made.exit_code == 0
    assert [read_record(tmp_path / f"r-batch{n}.json")["modes"]["batch"] for n in (1, 4)] == [1, 4]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--batch", "0"), "batch: 0; give a whole number of 1 or more"),
        (("--out", "."), "--out: . is a folder"),
        (("--batch", "one"), "batch: 'one'; give whole numbers"),
        (("--batch", "2,2"), "batch: the same one twice"),
        (("--queries", "0"), "queries: 0"),
        (("--provider", "ort-cpa"), "did you mean 'ort-cpu'"),
        (("--provider", "ort-cuda"), "no model for target 'tensorrt'"),
        (("--provider", "ort-cuda", "--target", "ort-cpu"), "asked for CUDAExecutionProvider"),
        (("--provider", "tensorrt"), "no engine of teacher.onnx for tensorrt"),
        (("--scenario", "server"), "server: give the load"),
        (("--device", "nowhere"), "nowhere"),
        (("--no-copies",), "leave --no-copies out"),
        (("--threads", "2", "--affinity", "0"), "give a processor for each thread"),
        (("--models", "pupil"), "models: unknown 'pupil'"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(
    run: Run, bundle: Bundle, arguments: tuple[str, ...], why: str
) -> None:
    made = run("bench", bundle.folder, *QUICK, *arguments)
    assert made.exit_code == 1
    (line,) = made.stderr.strip().splitlines()
    assert line.startswith("compress-deploy: ")
    assert why in line


def test_a_bundle_that_was_changed_is_refused(run: Run, bundle: Bundle) -> None:
    (bundle.folder / "ort-cpu.onnx").write_bytes(b"other")
    made = run("bench", bundle.folder, *QUICK)
    assert made.exit_code == 1
    assert "ort-cpu.onnx" in made.stderr


def test_status_of_records(
    run: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = read_record(EXAMPLE)
    for status, code in (("complete", 0), ("partial", 130), ("invalid", 1)):
        made_up = {**record, "status": status, "invalid_because": ["hot"] * (status == "invalid")}
        monkeypatch.setattr("toolchain.measuring.benching.run_bench", lambda *_, r=made_up, **__: r)
        made = run("bench", bundle.folder, *QUICK, "--out", f"{status}.json")
        assert made.exit_code == code, made.output
        assert read_record(tmp_path / f"{status}.json")["status"] == status
    assert "invalid: hot" in made.stdout
    assert "the record is invalid: hot" in made.stderr


def test_an_interrupt_before_anything_was_measured_leaves_no_record(
    run: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = {**read_record(EXAMPLE), "status": "partial", "models": {}}
    monkeypatch.setattr("toolchain.measuring.benching.run_bench", lambda *_, **__: empty)
    made = run("bench", bundle.folder, *QUICK, "--out", "none.json")
    assert made.exit_code == 130
    assert made.stdout == ""
    assert made.stderr.endswith("interrupted; run the same command again\n")
    assert not (tmp_path / "none.json").exists()


class FakeDevice:
    def __init__(self, name: str) -> None:
        self.name = name

    def bench(self, bundle: Path, request: dict[str, Any], progress: Any) -> dict[str, Any]:
        progress("single-stream", 0.5)
        if self.name == "b":
            raise DeviceError("b: is switched off; switch it on")
        record = copy.deepcopy(read_record(EXAMPLE))
        record["device"] = {"name": self.name, "kind": "ssh"}
        return record

    def close(self) -> None:
        pass


def test_a_fleet(run: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deploy.devices.device.find_device", FakeDevice)
    made = run("bench", bundle.folder, "--device", "a,b,c", "--out", "r.json")
    assert made.exit_code == 1
    assert "b: is switched off" in made.stderr
    (line,) = (line for line in made.stdout.splitlines() if line.startswith("  b "))
    assert line.split()[-1] == "failed"
    assert sorted(path.name for path in tmp_path.glob("r*.json")) == ["r-a.json", "r-c.json"]


def test_compare(run: Run, tmp_path: Path) -> None:
    record = read_record(EXAMPLE)
    write_record(record, tmp_path / "a.json")
    other = copy.deepcopy(record)
    other["modes"]["threads"] = 2
    write_record(other, tmp_path / "b.json")
    made = run("compare", "a.json", "a.json")
    assert made.exit_code == 0
    assert "student p50, ms" in made.stdout
    assert "same" in made.stdout
    made = run("compare", "a.json", "b.json")
    assert made.exit_code == 1
    assert "threads (1 against 2)" in made.stderr
    made = run("compare", "a.json", "b.json", "--allow-different", "threads")
    assert made.exit_code == 0
    assert "NOT MEASURED ALIKE, allowed: threads: 1 against 2" in made.stdout
    made = run("compare", "a.json", "a.json", "b.json", "--allow-different", "all", "--json")
    compared = json.loads(made.stdout)
    assert [each["allowed"] for each in compared] == [{}, {"threads": [1, 2]}]


def test_compare_refuses(run: Run, tmp_path: Path) -> None:
    record = read_record(EXAMPLE)
    write_record({**record, "status": "partial"}, tmp_path / "p.json")
    made = run("compare", EXAMPLE, "p.json")
    assert (made.exit_code, made.stderr.count("\n")) == (1, 1)
    assert "p.json: a partial record" in made.stderr
    made = run("compare", EXAMPLE)
    assert "give two or more" in made.stderr
    made = run("compare", EXAMPLE, "absent.json")
    assert "absent.json: the record cannot be read" in made.stderr


def test_words_and_numbers() -> None:
    assert words(" a,b ,") == ["a", "b"]
    assert words(None) == []
    assert numbers("batch", "1, 8") == [1, 8]
    with pytest.raises(ConfigError, match="batch: '1.5'"):
        numbers("batch", "1.5")


def test_paths_tell_records_apart() -> None:
    def record(device: str, batch: int) -> dict[str, Any]:
        return {"device": {"name": device}, "modes": {"batch": batch, "scenario": "offline"},
                "bundle": {"name": "net"}, "created": "2026-01-02T03:04:05+00:00"}  # fmt: skip

    one, two = record("ssh://me@board:22", 1), record("b", 8)
    assert record_paths([one], Path("x/r.json")) == [Path("x/r.json")]
    assert record_paths([one, two], Path("r.json")) == [
        Path("r-ssh---me-board-22-batch1.json"), Path("r-b-batch8.json"),
    ]  # fmt: skip
    assert record_paths([two], None) == [Path("records/net-offline-20260102T030405.json")]
    # Names of devices may differ only in what a file name cannot hold.
    alike = [record("ssh://me@board", 1), record("ssh://me:board", 1)]
    assert record_paths(alike, Path("r.json")) == [Path("r.json"), Path("r-2.json")]


def test_records_of_the_same_second_are_all_kept(
    run: Run, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> dict[str, Any]:
        return {**read_record(EXAMPLE), "created": "2026-01-02T03:04:05+00:00"}

    monkeypatch.setattr("toolchain.measuring.benching.run_bench", measured)
    names = []
    for _ in range(3):
        made = run("bench", bundle.folder)
        assert made.exit_code == 0, made.output
        names.append(next(line for line in made.stdout.splitlines() if line.startswith("record")))
    assert len(set(names)) == 3
    assert len(list((tmp_path / "records").iterdir())) == 3
    assert names[2].endswith("20260102T030405-3.json")
    for _ in range(2):  # a file that was named is replaced
        run("bench", bundle.folder, "--out", "mine.json")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["mine.json"]
