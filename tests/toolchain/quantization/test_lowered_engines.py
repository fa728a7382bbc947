"""NVIDIA's importer and builder on every built-in network: integer kernels, by their own account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from deploy.engines.build import BuiltEngine, build_engine
from deploy.engines.importer import import_onnx
from deploy.engines.precision import require_int8
from deploy.engines.settings import Batches, BuildSettings
from exporters.onnx_from_torch import export_onnx
from toolchain.quantization.lowering import lower

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def built(model: Path, *profiles: Batches) -> BuiltEngine:
    settings = BuildSettings(runtime="rtx", profiles=profiles or None)
    return build_engine(model, model.with_suffix(".plan"), settings)


# Of float16 graphs the quick tests build one with residual adds: test_targets.py.
@pytest.mark.parametrize(
    "target", ["tensorrt", pytest.param("tensorrt-fp16", marks=pytest.mark.slow)]
)
def test_built_in_networks_become_integer_engines(
    builtin: Any, quantize: Any, target: Any, tmp_path: Path
) -> None:
    network = quantize(builtin.network, builtin.images, unsigned_steps=127)
    path = tmp_path / "net.onnx"
    export_onnx(lower(network, target), builtin.images, path, float16=target == "tensorrt-fp16")
    found = import_onnx(path)
    assert found, found.problems
    assert found.warnings == ()

    model = onnx.load(str(path))
    operators = [node.op_type for node in model.graph.node]
    dynamic = built(path, Batches(1, 2, 4))
    assert next(iter(dynamic.about["profiles"].values()))[0][2][0] == 4
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    static_path = tmp_path / "static.onnx"
    onnx.save(model, str(static_path))
    static = built(static_path)
    for engine in (dynamic, static):
        require_int8(engine.precision, builtin.name, every="Conv" in operators)
        assert len(engine.precision.convolutions) == operators.count("Conv")
