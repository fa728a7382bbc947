"""``compress-deploy build`` as it is typed; engines are TensorRT-RTX's, which needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from deploy.bundle import Bundle, write_bundle
from toolchain.cli import app

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose student is one product of int8 matrices."""
    constants = {
        "xs": np.float32(0.05),
        "xz": np.int8(0),
        "w": np.arange(-64, 64, dtype=np.int8).reshape(4, 32).T.copy(),
        "ws": np.full(4, 0.01, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, str(tmp_path / "net.onnx"))
    written = write_bundle(
        tmp_path / "bundle",
        name="small",
        targets={"tensorrt": tmp_path / "net.onnx"},
        input_name="x",
        input_shape=(32,),
        output_name="y",
        classes=list("abcd"),
        mean=[0.0],
        std=[1.0],
        sample_inputs=np.zeros((2, 32), np.uint8),
        sample_outputs=np.zeros((2, 4), np.float32),
        recipe={},
        seeds={},
        versions={},
    )
    return written.folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


def test_the_table_says_what_was_built_and_what_was_not_proved(bundle: Path) -> None:
    done = run(bundle, "--max-batch", "4", "--runtime", "rtx")
    assert done.exit_code == 0, done.stderr
    assert "(1, 32) to (4, 32), best at (1, 32)" in done.stdout
    assert "engines/tensorrt.rtx" in done.stdout
    assert "tensorrt_rtx " in done.stdout
    assert "on int8" in done.stdout
    loaded = "loaded on" in done.stdout
    assert loaded != ("neither loaded nor executed" in done.stdout)
    assert any(name.endswith(".plan") for name in Bundle.open(bundle).manifest["files"])


def test_json_for_tools(bundle: Path) -> None:
    done = run(bundle, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["file"]).is_file()
    assert found["precision"]["products"] == {"classifier": "int8"}
    assert found["runtime"]["flavour"] in ("rtx", "tensorrt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min-batch", "4", "--max-batch", "2"], "1 <= min <= opt <= max"),
        (["--min-batch", "0"], "1 <= min <= opt <= max"),
        (["--target", "tensorrt-fp16"], "no model for target 'tensorrt-fp16'"),
        (["--target", "teacher"], "no teacher.onnx"),
        (["--runtime", "onnx"], "runtime is 'onnx'; choose from"),
        (["--runtime", "rtx", "--dla", "0"], "DLA core 0"),
        (["--dla-only"], "give --dla 0 too"),
        (["--runtime", "rtx", "--timing-cache", "cache"], "times no kernels"),
        (["--precision", "int3"], "precision is 'int3'"),
    ],
)
def test_what_cannot_be_done_is_one_line(bundle: Path, arguments: list[str], words: str) -> None:
    done = run(bundle, *arguments)
    assert done.exit_code == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (bundle / "engines").exists()


def test_no_bundle(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "not a bundle" in done.stderr
