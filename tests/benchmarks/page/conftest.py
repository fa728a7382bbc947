"""Run folders and records for pages, small and made here; and a reader of the HTML that comes out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.report import build_report, write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}
TEACHER = {"top1": 90.0, "parameters": 1000, "macs": 4_000_000, "size_bytes": 4000,
           "latency_ms": {"p50": 0.8, "p90": 1.0, "p99": 1.4, "n": 5000},
           "onnx": "bundle/teacher.onnx"}  # fmt: skip
STUDENT = {"top1": 89.4, "parameters": 400, "macs": 1_000_000, "size_bytes": 500,
           "latency_ms": {"p50": 0.2, "p90": 0.4, "p99": 0.5, "n": 9000},
           "onnx": "bundle/ort-cpu.onnx"}  # fmt: skip
GOALS = {"macs": 0.5, "accuracy_drop": 0.5, "latency": 0.3}


class PageReader(HTMLParser):
    """What a page holds: text, elements with their attributes; fails where tags do not balance."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # (classes around it, text)
        self._classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
            self._classes.append(attributes.get("class", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        self._classes.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open and self.open[-1] not in ("style", "script"):
            self.texts.append((" ".join(self._classes), data.strip()))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    def inside(self, name: str) -> list[str]:
        """Texts within elements of this class."""
        return [text for classes, text in self.texts if name in classes.split()]


def read(html: str) -> PageReader:
    reader = PageReader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def parse() -> Callable[[str], PageReader]:
    return read


def float_model(widths: Mapping[str, int]) -> onnx.ModelProto:
    """A chain of 1x1 convolutions with ReLUs, named and as wide as ``widths`` says, from 3 channels."""
    nodes, constants, value, channels = [], [], "images", 3
    for index, (layer, width) in enumerate(widths.items()):
        w_OIHW = np.full((width, channels, 1, 1), 0.5, np.float32)
        constants.append(numpy_helper.from_array(w_OIHW, f"{layer}.weight"))
        nodes.append(
            helper.make_node("Conv", [value, f"{layer}.weight"], [f"c{index}"], f"node_{layer}")
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu_{layer}"))
        value, channels = f"r{index}", width
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph)


def quantized_model(widths: Mapping[str, int]) -> onnx.ModelProto:
    """The same chain with 8-bit weights behind DequantizeLinear, but for the last layer."""
    nodes, constants, value, channels = [], [], "images", 3
    constants.append(numpy_helper.from_array(np.float32(0.1), "scale"))
    constants.append(numpy_helper.from_array(np.uint8(0), "zero"))
    for index, (layer, width) in enumerate(widths.items()):
        last = index == len(widths) - 1
        shape = (width, channels, 1, 1)
        if last:
            weight = f"{layer}.weight"
            constants.append(numpy_helper.from_array(np.ones(shape, np.float32), weight))
        else:
            constants.append(numpy_helper.from_array(np.ones(shape, np.int8), f"{layer}.q_OX"))
            weight = f"w{index}"
            nodes.append(helper.make_node("DequantizeLinear", [f"{layer}.q_OX", "scale"], [weight]))
            nodes.append(
                helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"q{index}"])
            )
            nodes.append(
                helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"x{index}"])
            )
            value = f"x{index}"
        nodes.append(helper.make_node("Conv", [value, weight], [f"c{index}"], f"node_{layer}"))
        value, channels = f"c{index}", width
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph)


WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a run folder: report, logs, bundle; ``write_run(name, student={...}, goals={...})``."""

    def write(name: str = "net", folder: str = "", **changes: Any) -> Path:
        place = tmp_path / (folder or f"run-{len(list(tmp_path.iterdir()))}")
        bundle = place / "bundle"
        (bundle / "student").mkdir(parents=True)
        onnx.save(float_model({"stem": 16, "gone": 16, "head": 10}), str(bundle / "teacher.onnx"))
        onnx.save(quantized_model({"stem": 8, "head": 10}), str(bundle / "ort-cpu.onnx"))
        spec = {"quantization": {"bits": 4, "edge_bits": 8, "activation_bits": 8}}
        (bundle / "student" / "spec.json").write_text(json.dumps(spec))
        manifest = {
            "name": name,
            "seeds": {"run": 3, "split": 7},
            "details": {
                "verified": {
                    "teacher": {
                        "rows": 200,
                        "agreeing": 200,
                        "points": 0.0,
                        "max_abs": 1e-5,
                        "passed": True,
                    },
                    "student": {
                        "rows": 200,
                        "agreeing": 190,
                        "points": -1.5,
                        "max_abs": 0.3,
                        "passed": False,
                    },
                },
                "kernels": {
                    "integer": [{"name": "node_stem", "kernel": "QLinearConv", "reason": ""}],
                    "float": [{"name": "node_head", "kernel": "Conv", "reason": "left in float"}],
                },
            },
            "files": {
                file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
                for file in bundle.glob("*.onnx")
            },
        }
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        (place / "logs").mkdir()
        rows = [
            {"kind": "step", "step": step, "loss": 2.0 / step, "strength.kl": 0.9, "bits": 8.0,
             "sparsity": step / 400, "lr": 0.1}
            for step in range(10, 110, 10)
        ]  # fmt: skip
        epoch = {"kind": "epoch", "step": 100, "validation_top1": 88.5, "validation_loss": 0.4}
        lines = [json.dumps(row) for row in [*rows, epoch]]
        (place / "logs" / "pqk-1a2b.jsonl").write_text("\n".join(lines) + "\n")
        arguments: dict[str, Any] = {
            "name": name,
            "seed": 3,
            "teacher": TEACHER,
            "student": STUDENT,
            "goals": GOALS,
            "stages": [
                {"name": "teacher", "seconds": 1.0, "metrics": {"validation_top1": 91.0}},
                {"name": "pqk", "seconds": 61.0, "metrics": {"validation_top1": 88.5}},
                {"name": "export", "seconds": 2.0, "metrics": {}},
            ],
            "environment": {"cpu_model": "Fast", "versions": {"numpy": "2", "torch": None},
                            "governor": None, "missing": {"governor": "no file"}},
            "method": ["latency: one thread, batch 1"],
            "notes": ["Conv head runs in float: on purpose"],
            "recipe": {"data": {"title": "pictures"}, "target": "ort-cpu"},
            "bundle": "bundle",
            "data_fingerprint": "0123456789abcdef",
            **changes,
        }  # fmt: skip
        write_report(build_report(**arguments), place)
        return place

    return write


WriteRecord = Callable[..., Path]


@pytest.fixture
def write_record(tmp_path: Path) -> WriteRecord:
    """Writes a record, of the bundle of ``run`` where one is given; ``changes`` replace top-level keys."""

    def write(run: Path | None = None, name: str = "record.json", **changes: Any) -> Path:
        rng = np.random.default_rng(1)
        hashes = {"teacher": "0" * 64, "student": "1" * 64}
        manifest = "2" * 64
        if run is not None:
            bundle = run / "bundle"
            manifest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
            for who, file in (("teacher", "teacher.onnx"), ("student", "ort-cpu.onnx")):
                hashes[who] = hashlib.sha256((bundle / file).read_bytes()).hexdigest()
        models = {}
        for who, scale in (("teacher", 0.8), ("student", 0.2)):
            samples = (scale * rng.lognormal(0, 0.1, 1000)).tolist()
            ordered = sorted(samples)
            models[who] = {
                "file": f"{who}.onnx",
                "sha256": hashes[who],
                "latency_ms": {
                    "p50": ordered[499], "p90": ordered[899], "p95": ordered[949],
                    "p99": ordered[989], "p99.9": None, "n": 1000, "mean": sum(samples) / 1000,
                    "cov": 0.1, "interval95": [ordered[470], ordered[530]], "samples": samples,
                    "samples_every": 1,
                },
                "throughput_per_s": 1000 / scale,
                "energy": None,
                "layers": [{"name": "node_stem", "op_type": "Conv", "kernel": "Conv",
                            "time_us": 40 * scale, "share": 0.8},
                           {"name": "softmax", "op_type": "Softmax", "kernel": "Softmax",
                            "time_us": 10 * scale, "share": 0.2}],
            }  # fmt: skip
        record = {
            "format": "compress-deploy record",
            "format_version": 1,
            "created": "2026-01-02T03:04:05+00:00",
            "status": "complete",
            "invalid_because": [],
            "bundle": {"name": "net", "manifest_sha256": manifest},
            "device": {"name": "board", "kind": "ssh"},
            "modes": {"provider": "ort-cpu", "target": "ort-cpu", "threads": 1, "batch": 1,
                      "scenario": "single-stream", "profile": "quick", "power_mode": "15W",
                      "versions": {"onnxruntime": "1.2.3"}},
            "models": models,
            "speedup": {"p50": 4.0, "interval95": [3.9, 4.1]},
            "harness": {"overhead_us": 0.2},
            "checks": {"warnings": ["latencies scatter"]},
            "environment": {"cpu_model": "Slow", "missing": {}},
            "meter": None,
            **changes,
        }  # fmt: skip
        path = tmp_path / name
        path.write_text(json.dumps(record))
        return path

    return write
