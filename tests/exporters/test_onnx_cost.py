"""Parameters and MACs of an ONNX file against those of the torch network that it was exported from."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy.errors import StorageError
from exporters.onnx_cost import count, onnx_cost
from exporters.onnx_from_torch import export_onnx
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.structure.cost import network_macs, network_parameters

NETS = [
    ("cifar_resnet", {"depth": 8, "width": 4}, (3, 16, 16)),
    ("mobilenet_v2", {}, (3, 32, 32)),
    ("mlp", {}, (1, 8, 8)),
]


@pytest.mark.parametrize(("name", "args", "shape"), NETS)
def test_a_plain_export_costs_what_the_network_costs(
    name: str, args: dict[str, int], shape: tuple[int, int, int], tmp_path: Path
) -> None:
    network = trace(build(name, **args)).eval()
    # Batch norms are kept apart, as another exporter may leave them.
    path = export_onnx(network, torch.zeros(2, *shape), tmp_path / "net.onnx")
    got = onnx_cost(path)
    assert got.macs == network_macs(network, shape)
    assert got.parameters == network_parameters(network)


def graph_of(*nodes: onnx.NodeProto, inner: int | None = 4) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, inner, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = helper.make_tensor("w", TensorProto.INT8, [2, 3, 3, 3], [1] * 54)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.5])
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [image], [out], [weight, scale]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def test_a_transposed_convolution_and_dequantized_weights() -> None:
    model = graph_of(
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"]),
        helper.make_node("ConvTranspose", ["x", "f"], ["y"], strides=[2, 2]),
    )
    got = count(model, "net")
    assert got.parameters == 54  # the scale is none
    assert got.macs == 54 * 4 * 4


def test_two_activations_are_no_layer() -> None:
    model = graph_of(helper.make_node("MatMul", ["x", "x"], ["y"]))
    assert count(model, "net").macs == 0


def test_sizes_that_nobody_knows() -> None:
    model = graph_of(helper.make_node("Relu", ["x"], ["y"]), inner=None)
    with pytest.raises(StorageError, match=r"net: input 'x' is of shape \[0, 2, 0, 4\]"):
        count(model, "net")


def test_a_model_that_does_not_run() -> None:
    model = graph_of(helper.make_node("NoSuchOperator", ["x"], ["y"]))
    with pytest.raises(StorageError, match="net: does not run on one input of zeros"):
        count(model, "net")
