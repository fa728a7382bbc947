"""The program inside ``runner.pyz``, in a process that has numpy and ONNX Runtime and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.records.record import read_record
from benchmarks.runner import TERMINATED, main
from deploy.bundle import Bundle, write_bundle
from deploy.devices.contents import add_built
from deploy.devices.lock import only_one
from deploy.devices.packing import pack_runner
from deploy.engines.build import BuiltEngine
from deploy.engines.precision import summarize
from deploy.sessions.ort import OrtCpuSession

BLOCKED = (
    "torch",
    "onnx",
    "pydantic",
    "typer",
    "yaml",
    "rich",
    "hypothesis",
    "exporters",
    "toolchain",
)
REQUEST = {"profile": "quick", "queries": 20, "duration_s": 0.05, "layers": False}


def quantized_conv(path: Path, seed: int) -> Path:
    """images [B, 3, 8, 8] -> int8 convolution -> 4 classes."""
    rng = np.random.default_rng(seed)
    constants = {
        "in_scale": np.float32(0.02), "zero": np.uint8(128), "w_scale": np.float32(0.01),
        "w_zero": np.int8(0), "w": rng.integers(-127, 128, (4, 3, 8, 8), np.int8),
        "out_scale": np.float32(0.1),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "in_scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "in_scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"]),
        helper.make_node("Conv", ["dq", "dw"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "zero"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "out_scale", "zero"], ["dy"]),
        helper.make_node("Flatten", ["dy"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("made")
    student, teacher = quantized_conv(folder / "s.onnx", 0), quantized_conv(folder / "t.onnx", 1)
    inputs = np.random.default_rng(2).integers(0, 256, (4, 3, 8, 8), np.uint8)
    feeds = {"images": (inputs.astype(np.float32) / 255 - 0.5) / 0.25}
    return write_bundle(
        folder / "bundle",
        name="tiny",
        targets={"ort-cpu": student},
        files={"teacher.onnx": teacher},
        input_name="images",
        input_shape=(3, 8, 8),
        output_name="logits",
        classes=tuple("abcd"),
        mean=(0.5,),
        std=(0.25,),
        sample_inputs=inputs,
        sample_outputs=OrtCpuSession(student).run(feeds)["logits"],
        recipe={},
        seeds={},
        versions={},
    )


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "runner.pyz"
    path.write_bytes(pack_runner())
    return path


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An interpreter to which nothing but numpy and ONNX Runtime is importable."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in BLOCKED)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocked}")
    return {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}


def test_it_measures_a_bundle_where_there_is_nothing_else(
    bundle: Bundle, pyz: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    (tmp_path / "request.json").write_text(json.dumps(REQUEST))
    command = [sys.executable, str(pyz), "bench", str(bundle.folder), "--request", "request.json"]
    command += ["--out", "out/record.json", "--progress", "progress"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    record = read_record(tmp_path / "out" / "record.json")
    assert record["status"] in ("complete", "invalid")
    assert set(record["models"]) == {"teacher", "student"}
    assert record["models"]["student"]["latency_ms"]["n"] >= 20
    told = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert told and all(0 <= line["share"] <= 1 for line in told)


def test_a_check_of_this_machine(pyz: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    command = [sys.executable, str(pyz), "check"]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ready"]
    assert "CPUExecutionProvider" in found["runtimes"]["onnxruntime"]["providers"]
    assert found["disk"]["folder"] == str(tmp_path)


def call(*arguments: object, bench: Callable[..., Any] | None = None) -> int:
    return main([str(argument) for argument in arguments], bench=bench)


def asked(tmp_path: Path, bundle: Bundle) -> list[object]:
    (tmp_path / "request.json").write_text(json.dumps(REQUEST))
    return ["bench", bundle.folder, "--request", tmp_path / "request.json", "--out",
            tmp_path / "record.json", "--progress", tmp_path / "progress"]  # fmt: skip


def partial(bundle: Bundle, request: Mapping[str, Any], progress: Any) -> dict[str, Any]:
    """What a measurement does when it is told to end: it gives what it has."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("nobody ended it")
    except KeyboardInterrupt:
        sections = ("bundle", "device", "modes", "harness", "checks", "environment")
        made: dict[str, Any] = {section: {} for section in sections}
        made["bundle"] = {"name": "tiny", "manifest_sha256": ""}
        made["device"] = {"name": "here", "kind": "local"}
        made["modes"] = {
            "provider": "ort-cpu", "target": "ort-cpu", "threads": 1, "batch": 1,
            "scenario": "single-stream", "profile": "quick", "versions": {},
        }  # fmt: skip
        made["checks"] = {"warnings": []}
        made.update(format="compress-deploy record", format_version=1, status="partial")
        return {**made, "created": "2026-01-01T00:00:00+00:00", "invalid_because": [], "models": {}}


def test_told_to_end_it_writes_a_partial_record(bundle: Bundle, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert call(*asked(tmp_path, bundle), bench=partial) == TERMINATED == 143
    assert read_record(tmp_path / "record.json")["status"] == "partial"
    assert signal.getsignal(signal.SIGTERM) == before


def test_told_to_end_before_there_is_anything_it_says_so(bundle: Bundle, tmp_path: Path) -> None:
    def interrupted(*given: object) -> Any:
        raise KeyboardInterrupt

    assert call(*asked(tmp_path, bundle), bench=interrupted) == TERMINATED
    (line,) = (tmp_path / "progress").read_text().splitlines()
    assert json.loads(line)["kind"] == "DeviceError"
    assert not (tmp_path / "record.json").exists()


def test_what_is_refused_is_one_line_and_a_status(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = asked(tmp_path, bundle)
    (tmp_path / "request.json").write_text('{"scenari": "offline"}')
    assert call(*arguments) == 1
    said = capsys.readouterr().err
    assert said == "compress-deploy: request: unknown setting 'scenari'; did you mean 'scenario'?\n"
    line = json.loads((tmp_path / "progress").read_text())
    assert line["kind"] == "ConfigError" and line["error"] in said


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_request_that_is_none_is_refused(
    text: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = asked(tmp_path, bundle)
    (tmp_path / "request.json").write_text(text)
    assert call(*arguments) == 1
    assert "request.json: " in capsys.readouterr().err


def test_only_one_measures_at_a_time(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_one():
        assert call(*asked(tmp_path, bundle), bench=partial) == 1
    assert f"process {os.getpid()} is measuring here already" in capsys.readouterr().err
    assert call(*asked(tmp_path, bundle), bench=partial) == TERMINATED


def test_an_engine_that_comes_out_the_same_is_handed_over_too(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = iter(("first", "second"))

    def build_engine(model: Path, out: Path, *_: Any) -> BuiltEngine:
        out.write_bytes(b"plan")
        side = out.with_name("side")
        side.write_text(next(sides))
        about = {"gpu": None, "runtime": {"flavour": "rtx"}}
        return BuiltEngine(out, side, about, summarize((), ""), (), loaded=False)

    monkeypatch.setattr("deploy.engines.bundled.build_engine", build_engine)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "settings.json").write_text(json.dumps({"model": "ort-cpu"}))
    for number in ("1", "2"):
        out = tmp_path / number
        arguments = ["build", bundle.folder, "--settings", tmp_path / "settings.json", "--out", out]
        assert main([str(each) for each in arguments]) == 0
        names = add_built(bundle.folder, out)["files"]
        assert names == ["engines/ort-cpu.rtx.plan", "engines/ort-cpu.rtx.plan.json"]
    assert (bundle.folder / names[1]).read_text() == "second"


def test_a_bug_is_not_dressed_up(bundle: Bundle, tmp_path: Path) -> None:
    def bug(*given: object) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(*asked(tmp_path, bundle), bench=bug)


def test_progress_within_a_stage_is_thinned_out(bundle: Bundle, tmp_path: Path) -> None:
    def talkative(bundle: Bundle, request: Any, progress: Callable[[str, float], None]) -> Any:
        for stage in ("a", "b"):
            for step in range(1000):
                progress(stage, step / 1000)
        raise KeyboardInterrupt

    call(*asked(tmp_path, bundle), bench=talkative)
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    stages = [line["stage"] for line in lines if "stage" in line]
    assert stages[0] == "a" and "b" in stages and len(stages) < 500
