"""An x86-64 without VNNI, emulated: where uint8 x int8 saturates silently unless it is prevented."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.slow

# What /proc/cpuinfo says on a Haswell: qemu emulates the instructions and shows the host's file.
CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel Core Processor (Haswell)
flags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 fma avx f16c avx2 bmi1 bmi2
"""
RUN = """
import sys
import numpy as np
from deploy.cpu import Cpu, read_cpu
from deploy.sessions.ort import OrtCpuSession

path, forced = sys.argv[1:]
cpu = Cpu("said to have VNNI", "x86_64", frozenset({"avx512_vnni"})) if forced == "off" else None
session = OrtCpuSession(path, cpu=cpu)
(y,) = session.run({"x": np.full((1, 16, 3, 3), 2.5, np.float32)}).values()
print(read_cpu().saturates_u8s8, session.settings.get("session.x64quantprecision"), float(y.item()))
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def haswell() -> Any:
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if platform.machine() != "x86_64" or qemu is None:
        pytest.skip("needs an x86-64 machine and qemu-x86_64")
    return qemu


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 products of 250 x 0.01 and -127 / 127 add up to -360, or 15 steps of 24 below zero."""
    path = tmp_path_factory.mktemp("model") / "convolution.onnx"
    constants = {
        "x_scale": np.float32(0.01), "x_zero": np.uint8(0), "w_scale": np.float32(1 / 127),
        "w_zero": np.int8(0), "w": np.full((1, 16, 3, 3), -127, np.int8),
        "y_scale": np.float32(24), "y_zero": np.uint8(128),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "y_scale", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


def run(qemu: str, prefix: Path, model: Path, forced: str) -> list[str]:
    (prefix / "proc").mkdir(parents=True)
    (prefix / "proc" / "cpuinfo").write_text(CPUINFO)
    command = [qemu, "-cpu", "Haswell", "-L", str(prefix), sys.executable, "-c", RUN]
    done = subprocess.run(
        [*command, str(model), forced],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_saturates_is_detected_and_prevented(
    haswell: str, model: Path, tmp_path: Path
) -> None:
    assert run(haswell, tmp_path, model, "as detected") == ["True", "1", "-360.0"]


def test_without_that_the_answer_is_wrong(haswell: str, model: Path, tmp_path: Path) -> None:
    assert run(haswell, tmp_path, model, "off") == ["True", "None", "-192.0"]
