"""A damaged file is said to be one, in a line; no byte of it crashes the linter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import StorageError
from exporters.lint.linting import lint
from tests.exporters.lint.corpus import CASES

NAMES = ("bias-int32", "control-flow-if", "gemm-float-weights", "half-scales-opset-21", "opset-25")
WHOLE = {name: CASES[name].model().SerializeToString() for name in NAMES}


def test_whole_models_are_sound() -> None:
    for case in CASES.values():
        lint(case.model(), "ort-cpu")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data_type", 99, "element type 99, which does not exist"),
        ("data_type", 0, "element type 0, which does not exist"),
        ("dims", [-1], "has a negative size"),
        ("raw_data", b"abc", "has 3 bytes for 4"),
    ],
)
def test_damaged_tensors(field: str, value: object, message: str) -> None:
    model = CASES["conv-signed"].model()
    tensor = next(one for one in model.graph.initializer if not one.dims)
    if field == "dims":
        tensor.dims.extend([-1])
    else:
        setattr(tensor, field, value)
    if field == "raw_data":
        assert tensor.data_type == onnx.TensorProto.FLOAT
    with pytest.raises(StorageError, match=message):
        lint(model, "tensorrt")


def test_tensor_without_its_values() -> None:
    model = CASES["conv-signed"].model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [4]
    with pytest.raises(StorageError, match="has not the 4 values"):
        lint(model, "tensorrt")


def test_nodes_without_their_inputs() -> None:
    model = CASES["conv-signed"].model()
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    del convolution.input[1:]
    with pytest.raises(StorageError, match="Conv 'layer' has 1 inputs; accepted is 2 or more"):
        lint(model, "tensorrt")
    model = CASES["conv-signed"].model()
    model.graph.node[0].input[1] = ""
    with pytest.raises(StorageError, match="has no value or no scale"):
        lint(model, "tensorrt")


def test_packed_codes_of_four_bits_are_whole() -> None:
    model = CASES["conv-signed"].model()
    packed = onnx.helper.make_tensor("packed", onnx.TensorProto.INT4, [3], np.array([1, 2, 3]))
    model.graph.initializer.append(packed)
    assert lint(model, "tensorrt") == []


@settings(max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 10**6),
)
def test_no_damage_crashes_the_linter(
    name: str,
    edits: list[tuple[int, int]],
    cut: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = bytearray(WHOLE[name])
    for place, byte in edits:
        content[place % len(content)] = byte
    if cut is not None:
        content = content[: cut % len(content)]
    path = Path(tmp_path_factory.getbasetemp(), "damaged.onnx")
    path.write_bytes(content)
    try:
        findings = lint(path, "tensorrt", dla=True)
    except StorageError as error:
        assert "\n" not in str(error)
    else:
        assert all(finding.message and finding.remedy for finding in findings)
