"""Layers of a bundle: what was cut, bits, kernels, and times joined to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from benchmarks.page.layer_table import layer_table, time_table
from benchmarks.page.layers import Layer, read_layers, read_products
from deploy.errors import MissingDependency, StorageError

Write = Callable[..., Path]


@pytest.fixture
def layers(write_run: Write) -> list[Layer]:
    bundle = write_run("net") / "bundle"
    spec = json.loads((bundle / "student" / "spec.json").read_text())
    kernels = json.loads((bundle / "manifest.json").read_text())["details"]["kernels"]
    return read_layers(bundle / "teacher.onnx", bundle / "ort-cpu.onnx", spec, kernels)


def test_structure_and_sparsity(layers: list[Layer]) -> None:
    assert [layer.name for layer in layers] == ["stem", "gone", "head"]
    assert [layer.student.outputs if layer.student else None for layer in layers] == [8, None, 10]
    # 16x3 weights became 8x3, all of 16x16 went, 10x16 became 10x8.
    assert [layer.sparsity for layer in layers] == [0.5, 1.0, 0.5]


def test_a_student_of_another_family_has_no_layers_of_the_teacher(
    write_run: Write, tmp_path: Path
) -> None:
    bundle = write_run("net") / "bundle"
    other = onnx.load(bundle / "ort-cpu.onnx")
    for named in (*other.graph.initializer, *other.graph.node):
        named.name = f"blocks.{named.name}"
    for node in other.graph.node:
        stored = {one.name for one in other.graph.initializer}
        node.input[:] = [f"blocks.{x}" if f"blocks.{x}" in stored else x for x in node.input]
    onnx.save(other, tmp_path / "other.onnx")
    assert read_layers(bundle / "teacher.onnx", tmp_path / "other.onnx", {}, {}) == []


def test_bits_and_kernels(layers: list[Layer]) -> None:
    stem, gone, head = layers
    assert (stem.weight_bits, stem.activation_bits, stem.kernel) == (8, 8, "QLinearConv")
    assert (head.weight_bits, head.activation_bits, head.reason) == (32, 32, "left in float")
    assert (gone.weight_bits, gone.activation_bits, gone.kernel) == (None, None, "")


def test_inner_layers_have_the_bits_of_the_spec(write_run: Write) -> None:
    bundle = write_run("net") / "bundle"
    spec = {"quantization": {"bits": 4, "edge_bits": 8, "activation_bits": 6}}
    layers = read_layers(bundle / "ort-cpu.onnx", bundle / "ort-cpu.onnx", spec, {})
    assert [layer.weight_bits for layer in layers] == [
        8,
        32,
    ]  # the first is an edge, the last float
    assert layers[0].activation_bits == 6


def test_times_are_joined_by_node_and_by_fused_activation(layers: list[Layer]) -> None:
    models = {
        "teacher": {"layers": [{"name": "r0", "op_type": "Conv", "time_us": 8.0},
                               {"name": "node_gone", "op_type": "Conv", "time_us": 4.0},
                               {"name": "pool", "op_type": "MaxPool", "time_us": 1.0}]},
        "student": {"layers": [{"name": "node_stem", "op_type": "Conv", "time_us": 2.0},
                               {"name": "pool", "op_type": "MaxPool", "time_us": 0.5}]},
    }  # fmt: skip
    table = layer_table(layers, models)
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0][-3:] == ["8.00", "2.00", "4.00\u202f×"]
    assert texts[1][-3:] == ["4.00", "0", "removed"]
    assert texts[3] == ["all MaxPool", *[""] * 5, "1.00", "0.500", "2.00\u202f×"]
    assert texts[4][-3:] == ["13.0", "2.50", "5.20\u202f×"]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_slower_layer_is_marked(layers: list[Layer]) -> None:
    models = {"teacher": {"layers": [{"name": "node_stem", "time_us": 1.0}]},
              "student": {"layers": [{"name": "node_stem", "time_us": 3.0}]}}  # fmt: skip
    cell = layer_table(layers, models).rows[0][-1]
    assert (cell.text, cell.tone) == ("3.00\u202f× slower", "bad")


def test_without_times_there_are_no_such_columns(layers: list[Layer]) -> None:
    table = layer_table(layers, {})
    assert [column.title for column in table.columns][-1] == "kernel"
    assert "1 of 3 layers as a whole" in table.caption


def test_times_alone_make_a_table() -> None:
    models = {"student": {"layers": [{"name": "a", "kernel": "QLinearConv", "time_us": 2.0, "share": 1.0},
                                     {"name": "b", "time_us": None}]}}  # fmt: skip
    texts = [[cell.text for cell in row] for row in time_table(models).rows]
    assert texts[0] == ["student", "a", "QLinearConv", "2.00", "100.0\u202f%"]
    assert texts[1][3] == "–"


def test_no_onnx_file_and_no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(StorageError, match="cannot be read as ONNX"):
        read_products(path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependency, match="onnx"):
        read_products(path)
