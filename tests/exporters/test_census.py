"""Quantizers are counted by what they compute, and none may go missing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import VerificationError
from exporters.census import census, require_same


def model_of(scale: np.ndarray, zero: np.ndarray | None = None, count: int = 1) -> onnx.ModelProto:
    """``count`` pairs of Q and DQ, one after the other."""
    stored = [numpy_helper.from_array(scale, "s")]
    parameters = ["s"]
    if zero is not None:
        stored.append(numpy_helper.from_array(zero, "z"))
        parameters.append("z")
    nodes, last = [], "x"
    for index in range(count):
        nodes.append(helper.make_node("QuantizeLinear", [last, *parameters], [f"q{index}"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"q{index}", *parameters], [f"y{index}"])
        )
        last = f"y{index}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", last)]
    return helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], stored))


def test_counts_pairs_by_scale_and_zero_point() -> None:
    found = census(model_of(np.float32(0.5), np.int8(0), count=3))
    assert sorted(found.values()) == [3, 3]
    assert {quantizer.op_type for quantizer in found} == {"QuantizeLinear", "DequantizeLinear"}


def test_the_same_number_in_another_type_is_the_same() -> None:
    half, full = (model_of(kind(0.0123)) for kind in (np.float16, np.float32))
    exact = model_of(np.float32(np.float16(0.0123)))
    require_same(census(half), census(exact), "test")
    with pytest.raises(VerificationError, match="test: 2 of 2 quantizers were lost"):
        require_same(census(full), census(half), "test")


def test_an_absent_zero_point_is_zero() -> None:
    assert census(model_of(np.float32(0.5))) == census(model_of(np.float32(0.5), np.int8(0)))
    assert census(model_of(np.float32(0.5))) != census(model_of(np.float32(0.5), np.int8(3)))


def test_a_lost_one_and_an_added_one_are_told() -> None:
    one, two = (census(model_of(np.float32(0.5), count=n)) for n in (1, 2))
    with pytest.raises(VerificationError, match="2 of 4 quantizers were lost .* 0 appeared"):
        require_same(two, one, "slimming")
    with pytest.raises(VerificationError, match="slimming: 0 of 2 .* 2 appeared"):
        require_same(one, two, "slimming")


def test_constant_nodes_count_and_computed_scales_do_not() -> None:
    model = model_of(np.float32(0.5))
    (stored,) = model.graph.initializer
    constant = helper.make_node("Constant", [], ["s"], value=stored)
    del model.graph.initializer[:]
    with pytest.raises(VerificationError, match="'s' is computed at run time"):
        census(model)
    model.graph.node.insert(0, constant)
    assert census(model) == census(model_of(np.float32(0.5)))
