"""What ONNX Runtime fuses, as measured; and that leftovers are named with the right reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.errors import StorageError, VerificationError
from deploy.sessions.ort import OrtCpuSession
from exporters.ort_fusion import SourceGraph
from exporters.ort_graph import kernel_report

Save = Callable[..., Path]
RELU6 = np.float32(0), np.float32(6)


def relu_conv(g: Any, x: str, **grid: Any) -> str:
    return g.pair(g.op("Relu", g.conv(x, name="layer")), **grid)


def clipped_conv(g: Any, x: str, step: float) -> str:
    limits = [g.constant(limit) for limit in RELU6]
    return g.pair(g.op("Clip", g.conv(x, name="layer"), *limits, name="clip"), step)


def normed_conv(g: Any, x: str) -> str:
    ones = [g.constant(np.ones(8, np.float32)) for _ in range(4)]
    return g.pair(g.op("BatchNormalization", g.conv(x, name="layer"), *ones, name="norm"))


def residual(g: Any, x: str, **branch: Any) -> str:
    x = relu_conv(g, x)
    y = g.pair(g.conv(x, name="branch"), **branch)
    return g.pair(g.op("Relu", g.op("Add", x, y, name="join")))


def two_readers(g: Any, x: str) -> str:
    y = g.op("Relu", g.conv(x, name="layer"))
    return g.pair(g.op("Add", g.pair(g.conv(g.pair(y), name="next")), y, name="join"))


def head(g: Any, x: str, flatten: str = "Reshape", end: bool = True, pool: bool = True) -> str:
    x = g.op("GlobalAveragePool", relu_conv(g, x), name="pool")
    x = g.pair(x) if pool else x
    shape = [g.constant(np.array([0, -1], np.int64))] if flatten == "Reshape" else []
    x = g.op(flatten, x, *shape, name="flatten")
    y = g.gemm(x, name="head")
    return g.pair(y, zero_point=128) if end else y


def mean_head(g: Any, x: str) -> str:
    x = g.op("ReduceMean", relu_conv(g, x), name="pool", axes=[2, 3], keepdims=1)
    return g.pair(x)


def padded_shortcut(g: Any, x: str) -> str:
    pads, zero = g.constant(np.array([0, 0, 0, 0, 0, 8, 0, 0])), g.constant(np.float32(0))
    wide = g.pair(g.op("Pad", relu_conv(g, x), pads, zero, name="pad"))
    y = g.pair(g.conv(x, 8, 16, name="branch"))
    return g.pair(g.op("Add", wide, y, name="join"))


INTEGER = {
    "relu, uint8 0": relu_conv,
    "relu, int8 -128": lambda g, x: relu_conv(g, x, zero_point=-128, dtype=np.int8),
    "no relu, uint8 128": lambda g, x: g.pair(g.conv(x, name="layer"), zero_point=128),
    "no relu, int8 0": lambda g, x: g.pair(g.conv(x, name="layer"), dtype=np.int8),
    "clip inside the grid": lambda g, x: clipped_conv(g, x, 6 / 255),
    "residual, both uint8 0": residual,
    "residual, uint8 0 and 128": lambda g, x: residual(g, x, zero_point=128),
    "residual, uint8 and int8": lambda g, x: residual(g, x, dtype=np.int8),
    "maxpool without its own pair": lambda g, x: g.pair(
        g.conv(g.op("MaxPool", relu_conv(g, x), kernel_shape=[2, 2]), name="next")
    ),
}


@pytest.mark.parametrize("build", INTEGER.values(), ids=INTEGER)
def test_fuses(save: Save, build: Callable[[Any, str], str]) -> None:
    path = save(build)
    report = kernel_report(path)
    convolutions = [n.name for n in onnx.load(str(path)).graph.node if n.op_type == "Conv"]
    assert [layer.name for layer in report.integer] == convolutions
    assert report
    assert report.require() is report
    assert (report.float, report.other_float, report.notes()) == ((), (), [])
    assert (report.quantize, report.dequantize) == (1, 1)


def test_what_has_no_kernel_is_said_and_is_nobodys_fault(save: Save) -> None:
    def transposed(g: Any, x: str) -> str:
        codes = g.constant(g.rng.integers(-127, 128, (8, 8, 2, 2)).astype(np.int8))
        grid = g.constant(np.ones(8, np.float32)), g.constant(np.zeros(8, np.int8))
        w = g.op("DequantizeLinear", codes, *grid, axis=1)
        return g.pair(g.op("ConvTranspose", relu_conv(g, x), w, name="up", strides=[2, 2]))

    report = kernel_report(save(transposed)).require()
    assert [layer.name for layer in report.float] == ["up"]
    assert report.float_convolutions == ()
    assert report.notes() == ["ConvTranspose up runs in float: ConvTranspose has no integer kernel"]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_fuses_in_every_opset(save: Save, opset: int) -> None:
    assert kernel_report(save(relu_conv, opset=opset)).operators["QLinearConv"] == 1


def test_selection_convolution_is_exact(save: Save) -> None:
    """The shortcut of a CIFAR ResNet as a 1x1 convolution moves codes without touching them."""

    def select(g: Any, x: str) -> str:
        w_OIHW = np.zeros((16, 8, 1, 1), np.int8)
        w_OIHW[np.arange(8) + 4, np.arange(8)] = 1
        grid = g.constant(np.ones(16, np.float32)), g.constant(np.zeros(16, np.int8))
        w = g.op("DequantizeLinear", g.constant(w_OIHW), *grid, axis=0)
        y = g.op("Conv", x, w, name="shortcut", kernel_shape=[1, 1], strides=[2, 2])
        return g.pair(y)

    path = save(select)
    codes = np.arange(1024).reshape(2, 8, 8, 8) % 256
    x = (codes * np.float32(0.02)).astype(np.float32)
    session = OrtCpuSession(path)
    (y,) = session.run({"x": x}).values()
    want = np.zeros((2, 16, 4, 4), np.float32)
    want[:, 4:12] = x[:, :, ::2, ::2]
    np.testing.assert_array_equal(y, want)
    assert kernel_report(path).integer[0].kernel == "QLinearConv"


FLOAT = {
    "no Q": (lambda g, x: g.conv(x, name="layer"), "is an output of the graph"),
    "float input": (lambda g, x: relu_conv(g, "x"), "its input 'x' is not quantized"),
    "relu, uint8 3": (lambda g, x: relu_conv(g, x, zero_point=3), "zero point 0 for uint8"),
    "relu, int8 0": (lambda g, x: relu_conv(g, x, dtype=np.int8), "zero point -128 for int8"),
    "clip": (lambda g, x: clipped_conv(g, x, 8 / 255), "Clip 'clip' before a Q with the range"),
    "batchnorm": (normed_conv, "BatchNormalization 'norm' stands between it and Q"),
    "two readers": (two_readers, "has 2 readers"),
    "sigmoid": (
        lambda g, x: g.pair(g.op("Sigmoid", g.conv(x, name="layer"), name="gate")),
        "no Q on its output before Sigmoid 'gate'",
    ),
    "hard-swish": (
        lambda g, x: g.pair(g.op("HardSwish", g.conv(x, name="layer"), name="act")),
        "no Q on its output before HardSwish 'act'",
    ),
}


@pytest.mark.parametrize(("build", "reason"), FLOAT.values(), ids=FLOAT)
def test_names_the_float_convolution_and_why(
    save: Save, build: Callable[[Any, str], str], reason: str
) -> None:
    report = kernel_report(save(build))
    assert not report
    assert [layer.name for layer in report.float_convolutions] == ["layer"]
    assert reason in report.float_convolutions[0].reason
    with pytest.raises(VerificationError, match="layer"):
        report.require()
    assert any("Conv layer runs in float" in note for note in report.notes())


def test_heads(save: Save) -> None:
    def gemm(**kind: Any) -> Any:
        return kernel_report(save(lambda g, x: head(g, x, **kind), rank=2))

    assert [layer.kernel for layer in gemm().integer] == ["QLinearConv", "QGemm"]
    flat = gemm(flatten="Flatten")
    assert flat, "a float head is no float convolution"
    assert [layer.name for layer in flat.float] == ["head"]
    assert "Flatten 'flatten' has no Q/DQ pair after it" in flat.float[0].reason
    assert "is an output of the graph" in gemm(end=False).float[0].reason
    assert [layer.name for layer in gemm(pool=False).other_float] == ["pool"]


def test_gemm_without_zero_points(save: Save) -> None:
    def bare(g: Any, x: str) -> str:
        x = g.op("Reshape", x, g.constant(np.array([0, -1], np.int64)))
        codes = g.constant(np.ones((4, 512), np.int8))
        w = g.op("DequantizeLinear", codes, g.constant(np.float32(0.1)), name="weights")
        return g.pair(g.op("Gemm", x, w, name="head", transB=1))

    (layer,) = kernel_report(save(bare, rank=2)).float
    assert (layer.name, layer.kernel) == ("head", "Gemm")
    assert "DequantizeLinear 'weights' has no zero point" in layer.reason


@pytest.mark.parametrize(("build", "name"), [(mean_head, "pool"), (padded_shortcut, "pad")])
def test_operators_without_an_integer_kernel(save: Save, build: Any, name: str) -> None:
    report = kernel_report(save(build))
    assert report
    assert [layer.name for layer in report.other_float] == [name]
    assert "has no integer kernel: write" in report.other_float[0].reason


def test_float_network_is_not_a_pass(float_classifier: Path) -> None:
    report = kernel_report(float_classifier)
    assert not report
    assert (report.integer, len(report.float)) == ((), 4)


def test_nodes_need_no_names(save: Save) -> None:
    path = save(residual)
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(path))
    assert [layer.name for layer in kernel_report(path).integer] == ["layer_out", "branch_out"]


def test_report_is_plain_data(save: Save) -> None:
    plain = kernel_report(save(relu_conv)).to_dict()
    assert plain["all_convolutions_integer"] is True
    assert plain["integer"][0]["kernel"] == "QLinearConv"


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        kernel_report(tmp_path / "absent.onnx")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x08not an onnx file")
    with pytest.raises(StorageError, match="not a whole ONNX model"):
        kernel_report(tmp_path / "cut.onnx")


def test_constants_are_told_in_graphs_deeper_than_a_stack() -> None:
    """ResNet-56 with its quantizers is one: a walk by recursion ended there."""
    deep = 5000
    nodes = [onnx.helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"]) for n in range(deep)]
    folded = [onnx.helper.make_node("Relu", [f"c{n}"], [f"c{n + 1}"]) for n in range(deep)]
    value = onnx.helper.make_tensor_value_info("v0", onnx.TensorProto.FLOAT, [1])
    last = onnx.helper.make_tensor_value_info(f"v{deep}", onnx.TensorProto.FLOAT, [1])
    weight = onnx.helper.make_tensor("c0", onnx.TensorProto.FLOAT, [1], [1.0])
    graph = SourceGraph(
        onnx.helper.make_model(
            onnx.helper.make_graph([*nodes, *folded], "deep", [value], [last], [weight])
        )
    )
    assert not graph.is_constant(nodes[-1])
    assert graph.is_constant(folded[-1]) and graph.is_constant(folded[0])
