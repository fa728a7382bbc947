"""One form from every dialect in which TensorRT describes layers.

The JSON is constructed, for want of a GPU: after the examples in NVIDIA's documentation of the engine
inspector (10.x) and of its migration to 11, which deploy/engines/layers.py names. The text is what
tensorrt-rtx 1.7.1 logged for a network of one convolution.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.engines.layers import Layer, layers_from_json, layers_from_log
from deploy.errors import DeviceError


def tensor10(name: str, kind: str) -> dict[str, Any]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 16, 8, 8],
        "Format/Datatype": f"Channel major {kind} format where channel % 32 == 0",
    }


def tensor11(name: str, kind: str) -> dict[str, Any]:
    return {
        "Name": name,
        "Dimensions": [1, 16, 8, 8],
        "Strides": [1024, 64, 8, 1],
        "Datatype": kind,
        "Format": "(NHWC) Channel major format",
    }


CONVOLUTION_10 = {
    "Name": "conv + act",
    "LayerType": "CaskConvolution",
    "Inputs": [tensor10("xq", "INT8")],
    "Outputs": [tensor10("r", "FP32")],
    "ParameterType": "Convolution",
    "Kernel": [3, 3],
    "Weights": {"Type": "Int8", "Count": 4608},
    "Bias": {"Type": "Float", "Count": 32},
    "Activation": "RELU",
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
    "TacticValue": "0x9c5b7e4e6b7b4ec0",
    "StreamId": 0,
    "Metadata": "[ONNX Layer: conv]\u001e[ONNX Layer: act]",
}
REFORMAT_10 = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to conv + act",
    "LayerType": "Reformat",
    "Inputs": [tensor10("x", "FP32")],
    "Outputs": [tensor10("xq", "INT8")],
    "ParameterType": "Reformat",
    "Origin": "REFORMAT",
    "TacticName": "",
    "TacticValue": "0x0000000000000000",
    "StreamId": 0,
    "Metadata": "",
}
JSON_10 = {"Layers": [REFORMAT_10, CONVOLUTION_10], "Bindings": ["x", "y"]}
JSON_11 = {
    "Layers": [
        {
            "Name": "conv_myl0_2",
            "LayerType": "correlation",
            "Inputs": [tensor11("xq", "Int8")],
            "Constants": [tensor11("w", "Int8"), tensor11("b", "Float")],
            "Outputs": [tensor11("r", "Half")],
            "TacticName": "sm86_xmma_fprop",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: conv]\u001f[ONNX Layer: dequantize_x]",
        }
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Float"}],
}
LOG = (
    "Layers:\n"
    "Name: __mye276_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, Metadata: \n"
    "Name: __myl_MulMinMaxRounCast_myl0_1, LayerType: kgen, Inputs: [ { Name: x, Dimensions: "
    "[-1,16,8,8], Strides: [1024,64,8,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: "
    "(Linear) Row major linear format }], Constants: [ { Name: lit, Dimensions: [1], Strides: "
    "[1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], "
    "Outputs: [ { Name: xq, Dimensions: [-1,16,8,8], Strides: [1024,1,128,16], StrideOrder: "
    "[3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: "
    "__myl_MulMinMaxRounCast_0xe27d, StreamId: 0, Metadata: [ONNX Layer: quantize_x]\n"
    "Name: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: xq, Dimensions: [-1,16,8,8], "
    "Strides: [1024,1,128,16], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel "
    "major format }], Constants: [ { Name: w, Dimensions: [32,16,3,3], Strides: [144,1,48,16], "
    "StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: b, "
    "Dimensions: [1,32,1,1], Strides: [32,1,32,32], StrideOrder: [3,0,2,1], Datatype: Float, "
    "Format: (NHWC) Channel major format }], Outputs: [ { Name: r, Dimensions: [-1,32,8,8], "
    "Strides: [2048,1,256,32], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel "
    "major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: conv]"
    "\x1f[ONNX Layer: dequantize_x]\x1f[ONNX Layer: weights]\n"
    "\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,16,8,8]\n"
    "\nEngine Metadata:\n Multi-Device: Disabled"
)


def test_the_dialect_of_10() -> None:
    reformat, convolution = layers_from_json(json.dumps(JSON_10))
    assert (reformat.kind, reformat.precision, reformat.output) == ("reformat", "float32", "int8")
    assert convolution == Layer(
        "conv + act",
        "CaskConvolution",
        "int8",
        "float32",
        "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        ("conv", "act"),
        "convolution",
    )
    assert convolution.is_convolution
    assert convolution.has_weights


def test_the_dialect_of_11() -> None:
    (convolution,) = layers_from_json(json.dumps(JSON_11))
    assert convolution.nodes == ("conv", "dequantize_x")
    assert (convolution.precision, convolution.output) == ("int8", "float16")
    assert convolution.is_convolution


def test_the_log_of_a_build() -> None:
    shape, quantize, convolution = layers_from_log(LOG)
    assert (shape.precision, shape.nodes, shape.kind) == ("", (), "other")
    assert (quantize.precision, quantize.output) == ("float32", "int8")
    assert quantize.tactic == "__myl_MulMinMaxRounCast_0xe27d"
    assert convolution == Layer(
        "conv_myl0_2",
        "correlation",
        "int8",
        "float32",
        "__myelin_CASK_STUB",
        ("conv", "dequantize_x", "weights"),
        "convolution",
    )


def test_a_log_in_the_words_of_10() -> None:
    text = (
        "Layers:\nName: conv + act, LayerType: CaskConvolution, Inputs: [ { Name: xq, Location: "
        "Device, Dimensions: [1,16,8,8], Format/Datatype: Thirty-two wide channel vectorized row "
        "major Int8 format }], Outputs: [ { Name: r, Location: Device, Dimensions: [1,32,8,8], "
        "Format/Datatype: Row major linear FP32 }], ParameterType: Convolution, Kernel: [3,3], "
        'Weights: {"Type": "Int8", "Count": 4608}, Bias: {"Type": "Float", "Count": 32}, '
        "TacticName: sm80_xmma, TacticValue: 0x9c5b, StreamId: 0, Metadata: [ONNX Layer: conv]\n"
        "\nBindings:\nx\ny"
    )
    (convolution,) = layers_from_log(text)
    assert (convolution.precision, convolution.output) == ("int8", "float32")
    assert convolution.nodes == ("conv",)
    assert convolution.tactic == "sm80_xmma"


def test_weights_in_float_make_a_float_layer() -> None:
    changed = {**CONVOLUTION_10, "Weights": {"Type": "Float", "Count": 4608}}
    assert layers_from_json(json.dumps({"Layers": [changed]}))[0].precision == "float32"
    constants = [tensor11("w", "Float")]
    changed = {**JSON_11["Layers"][0], "Constants": constants}  # type: ignore[index]
    assert layers_from_json(json.dumps({"Layers": [changed]}))[0].precision == "float32"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("__myl_CastMulFc_myl0_6", "product"),
        ("__myl_ReplConcMatMul_myl0_1", "product"),
        ("__myl_CastConvAdd_myl0_1", "convolution"),
        ("__myl_MulMinMaxRounCastReplConc_myl0_1", "other"),
        ("features.0/Conv_myl0_2", "other"),
    ],
)
def test_a_fusion_is_what_it_is_named_after(name: str, kind: str) -> None:
    layer = {"Name": name, "LayerType": "kgen", "Inputs": [tensor11("x", "Float")]}
    assert layers_from_json(json.dumps({"Layers": [layer]}))[0].kind == kind


@pytest.mark.parametrize(
    ("layer_type", "kind"),
    [
        ("CaskConvolution", "convolution"),
        ("CudaDepthwiseConvolution", "convolution"),
        ("CaskDeconvolutionV2", "convolution"),
        ("correlation", "convolution"),
        ("gemm", "product"),
        ("MatrixMultiply", "product"),
        ("Reformat", "reformat"),
        ("NoOp", "reformat"),
        ("PointWiseV2", "other"),
        ("kgen", "other"),
    ],
)
def test_kinds(layer_type: str, kind: str) -> None:
    layer = {"Name": "a", "LayerType": layer_type, "Inputs": [tensor10("x", "FP16")]}
    (found,) = layers_from_json(json.dumps({"Layers": [layer]}))
    assert (found.kind, found.precision) == (kind, "float16")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Row major linear FP32", "float32"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("FP8 E4M3", "float8"),
        ("Int8", "int8"),
        ("UInt8", "uint8"),
        ("Int64", "int64"),
        ("Two wide channel vectorized row major FP16 format", "float16"),
        ("", ""),
        ("something new", ""),
        ("N/A due to dynamic shapes", ""),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
    ],
)
def test_types_in_any_words(said: str, meant: str) -> None:
    layer = {"Name": "a", "LayerType": "kgen", "Inputs": [{"Name": "x", "Format/Datatype": said}]}
    assert layers_from_json(json.dumps({"Layers": [layer]}))[0].precision == meant


def test_numbers_that_json_does_not_have() -> None:
    text = json.dumps(JSON_10).replace('"StreamId": 0', '"Beta": -inf, "Alpha": nan', 1)
    assert len(layers_from_json(text)) == 2


def test_a_layer_goes_there_and_back() -> None:
    layer = layers_from_log(LOG)[2]
    assert Layer.from_dict(json.loads(json.dumps(layer.to_dict()))) == layer


@pytest.mark.parametrize("text", ["", "[]", "{}", "Layers: a", '{"Layers": 3}'])
def test_what_is_not_understood_is_said(text: str) -> None:
    with pytest.raises(DeviceError, match="not understood"):
        layers_from_json(text)


def test_names_alone_prove_nothing() -> None:
    with pytest.raises(DeviceError, match="verbosity 'detailed'"):
        layers_from_json('{"Layers": ["conv", "act"], "Bindings": []}')
