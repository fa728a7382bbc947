"""float16 inside, float32 at the border, and every scale the number it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import VerificationError
from exporters.census import census
from exporters.float16 import LEAST_OPSET, to_float16

RANDOM = np.random.default_rng(0)
W_OI = RANDOM.normal(size=(4, 4, 1, 1)).astype(np.float32)
BIAS_O = RANDOM.normal(size=4).astype(np.float32)
STEP = np.float32(0.03125)


def model_of(
    *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), **stored: np.ndarray
) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 3, 3])
        for name in ("x", *outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    opsets = [helper.make_opsetid("", LEAST_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def quantized() -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> y, both pairs with one scale."""
    pair = ["s", "z"]
    return model_of(
        helper.make_node("QuantizeLinear", ["x", *pair], ["q0"], "in/Q"),
        helper.make_node("DequantizeLinear", ["q0", *pair], ["d0"], "in/DQ"),
        helper.make_node("Conv", ["d0", "w", "b"], ["c"], "conv/Conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu/Relu"),
        helper.make_node("QuantizeLinear", ["r", *pair], ["q1"], "out/Q"),
        helper.make_node("DequantizeLinear", ["q1", *pair], ["y"], "out/DQ"),
        s=STEP,
        z=np.int8(0),
        w=W_OI,
        b=BIAS_O,
    )


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_values_and_types() -> None:
    model, x = quantized(), RANDOM.normal(size=(2, 4, 3, 3)).astype(np.float32)
    (want,) = run(model, x)
    before = census(model)
    to_float16(model)
    (got,) = run(model, x)
    assert got.dtype == np.float32
    # Sums of four products in float16: a rounding may turn over, to the next step.
    assert np.abs(got - want).max() <= STEP
    assert census(model) == before
    assert types(model) == {
        "s": TensorProto.FLOAT,
        "z": TensorProto.INT8,
        "s.half": TensorProto.FLOAT16,
        "w.half": TensorProto.FLOAT16,
        "b.half": TensorProto.FLOAT16,
    }
    first, *rest = model.graph.node
    assert list(first.input) == ["x", "s", "z"], "the input goes on its grid in float32"
    assert [node.op_type for node in rest][-1] == "Cast"
    assert not any(node.op_type == "Cast" for node in rest[:-1])


def test_an_input_without_a_quantizer_is_cast_once() -> None:
    model = model_of(
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv/Conv"),
        helper.make_node("Add", ["c", "x"], ["y"], "add/Add"),
        w=W_OI,
        b=BIAS_O,
    )
    x = RANDOM.normal(size=(1, 4, 3, 3)).astype(np.float32)
    (want,) = run(model, x)
    to_float16(model)
    (got,) = run(model, x)
    np.testing.assert_allclose(got, want, atol=0.02)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "Add", "Cast"]


def test_an_output_that_is_read_inside_and_casts_of_the_network() -> None:
    model = model_of(
        helper.make_node("Relu", ["x"], ["y"], "a"),
        helper.make_node("Cast", ["y"], ["i"], "b", to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["z"], "c", to=TensorProto.FLOAT),
        outputs=("y", "z"),
    )
    x = RANDOM.normal(scale=4, size=(1, 4, 3, 3)).astype(np.float32)
    wanted = run(model, x)
    to_float16(model)
    for got, want in zip(run(model, x), wanted, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-3)


def test_scales_that_are_no_float16_numbers_are_refused() -> None:
    model = quantized()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(0.0123), "s"))
    with pytest.raises(VerificationError, match="float16: 3 of 4 quantizers were lost or changed"):
        to_float16(model)


def test_constants_beyond_the_range_are_refused() -> None:
    model = quantized()
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(W_OI * 1e6, "w"))
    with pytest.raises(VerificationError, match="constant 'w' reaches .* up to 65504"):
        to_float16(model)


def test_sizes_of_a_resize_stay_float32() -> None:
    model = model_of(
        helper.make_node("Resize", ["x", "", "scales"], ["y"], "resize", mode="nearest"),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 6
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 6
    x = RANDOM.normal(size=(1, 4, 3, 3)).astype(np.float32)
    (want,) = run(model, x)
    to_float16(model)
    np.testing.assert_allclose(run(model, x)[0], want, rtol=1e-3)
    assert types(model) == {"scales": TensorProto.FLOAT}
