"""Operators against NumPy, and against ONNX Runtime's float operators for what they become."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from exporters import qdq_ops
from exporters.qdq_ops import FakeQuantize

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def quantized(
    x: np.ndarray, scale: float, zero_point: int, signed: bool, top: int | None = None
) -> np.ndarray:
    low, high = (-128, 127) if signed else (0, 255)
    high = high if top is None else top
    return (np.clip(np.rint(x / scale) + zero_point, low, high) - zero_point) * scale


@pytest.mark.parametrize(
    ("zero_point", "signed"), [(0, False), (128, False), (0, True), (-7, True)]
)
@given(
    shape=SHAPES,
    seed=st.integers(0, 999),
    scale=st.floats(1e-3, 0.1),
    top=st.sampled_from([None, 127, 99]),
)
def test_fake_quantize(
    zero_point: int,
    signed: bool,
    shape: tuple[int, ...],
    seed: int,
    scale: float,
    top: int | None,
) -> None:
    x = np.random.default_rng(seed).normal(scale=4, size=shape)
    got = qdq_ops.fake_quantize(torch.from_numpy(x), scale, zero_point, signed, top)
    np.testing.assert_array_equal(got.numpy(), quantized(x, scale, zero_point, signed, top))


def test_halves_go_to_the_even_code() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert qdq_ops.fake_quantize(x, 1.0, 128, False).tolist() == [0, 2, 2, 0, -2]


def test_both_grids_of_signed_values_are_the_same() -> None:
    x = torch.randn(1000) * 3
    one, two = (qdq_ops.fake_quantize(x, 0.017, *grid) for grid in ((128, False), (0, True)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_has_the_precision_of_the_values(dtype: torch.dtype) -> None:
    y = qdq_ops.fake_quantize(torch.ones(1, dtype=dtype), 1 / 3, 0, False)
    assert y.dtype == dtype
    assert y.item() == (3 * torch.tensor(1 / 3, dtype=dtype)).item()


@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_dequantize_weight(shape: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    q_OX = random.integers(-128, 128, shape, dtype=np.int8)
    for axis in (0, 1):
        scale_O = random.uniform(0.01, 1.0, shape[axis]).astype(np.float32)
        got = qdq_ops.dequantize_weight(torch.from_numpy(q_OX), torch.from_numpy(scale_O), axis)
        wide = [1] * len(shape)
        wide[axis] = -1
        np.testing.assert_array_equal(got.numpy(), q_OX * scale_O.reshape(wide))


@given(shape=st.tuples(*[st.integers(1, 5)] * 4))
def test_pool_and_flatten(shape: tuple[int, int, int, int]) -> None:
    x = torch.arange(float(np.prod(shape))).view(shape)
    pooled = qdq_ops.global_average_pool(x)
    assert pooled.shape == (*shape[:2], 1, 1)
    torch.testing.assert_close(pooled[:, :, 0, 0], x.mean((2, 3)))
    assert torch.equal(qdq_ops.flatten(x), x.reshape(shape[0], -1))


@pytest.mark.parametrize("op", [
    lambda x: qdq_ops.fake_quantize(x, 0.1, 128, False),
    lambda x: qdq_ops.dequantize_weight(x.to(torch.int8), torch.ones(3), 1),
    qdq_ops.global_average_pool,
    qdq_ops.flatten,
])  # fmt: skip
def test_shapes_without_data_are_those_with_data(op: Any) -> None:
    x = torch.randn(2, 3, 4, 5)
    with FakeTensorMode() as mode:
        symbolic: Tensor = op(mode.from_tensor(x))
    real: Tensor = op(x)
    assert symbolic.shape == real.shape
    assert symbolic.dtype == real.dtype


@pytest.mark.parametrize(("relu", "want"), [(True, [0.0, 0.0, 0.5]), (False, [-0.5, 0.0, 0.5])])
def test_module_applies_its_relu_first(relu: bool, want: list[float]) -> None:
    grid = FakeQuantize(0.5, 128, signed=False, relu=relu)
    assert grid(torch.tensor([-0.6, 0.1, 0.6])).tolist() == want


def test_translations_name_every_operator() -> None:
    written = {str(op) for op in qdq_ops.translations(18)}
    names = ("fake_quantize", "dequantize_weight", "global_average_pool", "mean", "flatten")
    assert written == {f"compress_deploy.{name}.default" for name in names}


class Everything(torch.nn.Module):
    """Each operator once, with a linear weight."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        q_OI = random.integers(-127, 128, (5, 3), dtype=np.int8)
        self.register_buffer("q_OI", torch.from_numpy(q_OI))
        self.register_buffer("scale_O", torch.from_numpy(random.uniform(0.01, 0.1, 5)).float())
        self.grid = FakeQuantize(0.02, 128, signed=False, relu=False)
        self.positive = FakeQuantize(0.03, 0, signed=False, relu=True)
        self.low = FakeQuantize(0.03, 0, signed=False, relu=True, top=20)

    def forward(self, x: Tensor) -> Tensor:
        x = qdq_ops.flatten(qdq_ops.global_average_pool(self.grid(x)))
        w_OI = qdq_ops.dequantize_weight(self.q_OI, self.scale_O, 0)
        return self.low(self.positive(torch.nn.functional.linear(x, w_OI)))


def test_what_they_become_computes_the_same() -> None:
    module = Everything().eval()
    x = torch.randn(3, 3, 4, 4)
    program = torch.onnx.export(
        module,
        (x,),
        dynamo=True,
        opset_version=18,
        optimize=False,
        custom_translation_table=qdq_ops.translations(18),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {model.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(got, module(x).numpy(), atol=1e-6)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3
    assert kinds.count("DequantizeLinear") == 4
    assert kinds.count("Clip") == 1
    assert "GlobalAveragePool" in kinds
    assert "Reshape" in kinds
