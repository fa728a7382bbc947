"""Each target's graph: what torch computes on that grid, in the forms that its runtime takes."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx, nn

from deploy.engines.build import build_engine
from deploy.engines.importer import import_onnx
from deploy.engines.settings import BuildSettings
from deploy.errors import StructureError
from deploy.sessions.ort import OrtCpuSession
from deploy.targets import PORTABLE, TARGETS, WIDE, Target, unsigned_steps
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from exporters.ort_graph import kernel_report
from exporters.qdq_ops import FakeQuantize
from toolchain.graph import trace
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.lowered_grids import fixed_grid
from toolchain.quantization.lowered_layers import IntegerLayer
from toolchain.quantization.lowering import lower

TENSORRT: tuple[Target, ...] = ("tensorrt", "tensorrt-fp16")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)


class Grid(nn.Module):
    """A quantizer's values on int8 with zero point 0, computed from its numbers alone."""

    def __init__(self, trained: ActivationQuantizer) -> None:
        super().__init__()
        step = trained.step().detach().double()
        self.positive = not trained.signed
        if self.positive and trained.high == 255:
            step = step * 255 / 127
        self.step = float(np.float32(float(step)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp_min(0) if self.positive else x
        return (x / self.step).round().clamp(-128, 127) * self.step


def on_int8(network: fx.GraphModule) -> fx.GraphModule:
    """The student with every activation on int8, nothing folded, weights as they were trained."""
    other = copy.deepcopy(network)
    for name, module in list(other.named_modules()):
        if isinstance(module, ActivationQuantizer):
            other.set_submodule(name, Grid(module))
    return other


@torch.no_grad()
@pytest.mark.parametrize("steps", [WIDE, PORTABLE])
@pytest.mark.parametrize("bits", [8, 4])
def test_tensorrt_computes_the_student_on_int8(
    builtin: Any, quantize: Any, steps: int, bits: int
) -> None:
    network = quantize(builtin.network, builtin.images, bits=bits, unsigned_steps=steps).double()
    images = builtin.images.double()
    want = on_int8(network)(images)
    assert float((lower(network, "tensorrt")(images) - want).abs().max()) < 1e-9
    if steps == PORTABLE:  # the grid it was trained on, for every target
        torch.testing.assert_close(network(images), want, rtol=0, atol=1e-9)
        assert float((lower(network, "ort-cpu")(images) - want).abs().max()) < 1e-9
    else:
        assert float((network(images) - want).abs().max()) > 0


@torch.no_grad()
@pytest.mark.parametrize("steps", [WIDE, PORTABLE])
def test_float16_moves_scales_to_float16_numbers_and_nothing_else(
    builtin: Any, quantize: Any, steps: int
) -> None:
    network = quantize(builtin.network, builtin.images, unsigned_steps=steps)
    full = dict(lower(network, "tensorrt").named_modules())
    half = dict(lower(network, "tensorrt-fp16").named_modules())
    assert full.keys() == half.keys()
    for name, module in half.items():
        if isinstance(module, FakeQuantize):
            assert np.float16(module.scale) == module.scale
            assert abs(module.scale / full[name].scale - 1) <= 2**-11  # type: ignore[operator]
        if isinstance(module, IntegerLayer):
            torch.testing.assert_close(
                module.scale_O.half().float(), module.scale_O, rtol=0, atol=0
            )
            wide = full[name]
            assert isinstance(wide, IntegerLayer)
            assert torch.equal(module.q_OX, wide.q_OX)
            torch.testing.assert_close(module.scale_O, wide.scale_O, rtol=2**-11, atol=0)
            assert torch.equal(module.bias_O, wide.bias_O)


@given(
    absorbs=st.sampled_from(["none", "relu", "relu6"]),
    steps=st.sampled_from([WIDE, PORTABLE]),
    scale=st.floats(1e-4, 0.2),
    seed=st.integers(0, 99),
)
def test_grids(absorbs: Any, steps: int, scale: float, seed: int) -> None:
    """int8 ends where the trained grid ends, every target of 127 steps has the same values."""
    trained = ActivationQuantizer(absorbs, signed=absorbs == "none", steps=steps).double()
    with torch.no_grad():
        trained.scale.fill_(scale)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(300, generator=generator, dtype=torch.float64) * scale * 150
        x = torch.cat([x, torch.tensor([0.0, 1e9, -1e9], dtype=torch.float64)])
        want = trained(x)
        got = {target: fixed_grid(trained, target)(x) for target in TARGETS}
        step = float(trained.step().detach())
    ceiling = float(want.max())
    for target, y in got.items():
        allowed = 1e-4  # a scale is float32
        if steps == WIDE and target != "ort-cpu":
            allowed = 1.51  # half of a step, and half of one that is 255 / 127 times as wide
        if target == "tensorrt-fp16":
            allowed = 1.51 + 255 * 2**-10  # whose scale is off by a share of 2^-11
        assert float((y - want).abs().max()) <= step * allowed
        assert float(y.max()) == pytest.approx(ceiling, rel=2**-10)
        if absorbs == "relu6":
            assert float(y.max()) <= 6 * (1 + 2**-11)
        assert (float(y.min()) < 0) == (absorbs == "none")
        assert y[-3] == 0
    grid = fixed_grid(trained, "tensorrt")
    assert isinstance(grid, FakeQuantize)
    assert (grid.zero_point, grid.signed) == (0, True)
    codes = got["tensorrt"] / grid.scale
    assert float((codes - codes.round()).abs().max()) < 1e-6
    assert codes.round().abs().max() <= 128


def test_steps_of_targets() -> None:
    assert unsigned_steps(["ort-cpu"]) == 255
    for target in TENSORRT:
        assert unsigned_steps([target]) == unsigned_steps(["ort-cpu", target]) == 127


@pytest.mark.parametrize("target", TARGETS)
def test_other_widths_are_refused_with_the_target(target: Target) -> None:
    quantizer = ActivationQuantizer("relu", signed=False, bits=4)
    with pytest.raises(StructureError, match=f"of 4 bits; accepted for {target} is 8"):
        fixed_grid(quantizer, target)


@torch.no_grad()
def test_scales_beyond_float16_are_brought_in(quantize: Any) -> None:
    """Tiny steps become the least that is still a number, with integers to match."""
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval())
    network.get_submodule("2").weight[0].fill_(1e-5)  # type: ignore[operator, union-attr, index]
    x = torch.randn(4, 3, 5, 5)
    quantize(network, x)
    lowered = lower(network, "tensorrt-fp16")
    layer = lowered.get_submodule("2")
    assert isinstance(layer, IntegerLayer)
    assert float(layer.scale_O.min()) == 2.0**-20
    assert float((lowered(x) - network(x)).abs().max()) < 0.02


def numbers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def check_tensorrt_form(model: onnx.ModelProto, half: bool) -> None:
    """What NVIDIA's importer refuses, or takes and computes otherwise, is not there."""
    graph, stored = model.graph, numbers(model)
    made_by = {output: node for node in graph.node for output in node.output}
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"BatchNormalization", "Clip", "ReduceMean", "Slice", "Pad"}
    floats = np.float16 if half else np.float32
    assert {array.dtype.type for array in stored.values()} <= {
        np.int8,
        np.int64,
        np.float32,
        floats,
    }
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert (
                not half
                or node.op_type in ("Cast", "Reshape")
                or not any(
                    stored.get(name, np.zeros(0, floats)).dtype == np.float32 for name in node.input
                )
            )
            continue
        scale = stored[node.input[1]]
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
        if len(node.input) > 2:
            zero = stored[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "QuantizeLinear":
            assert scale.ndim == 0
            assert len(node.input) == 3, "without a zero point the type would be uint8"
            assert scale.dtype == (np.float32 if node.input[0] == INPUT else floats)
        else:
            assert scale.dtype == floats
    for node in graph.node:
        if node.op_type in ("Add", "Concat"):
            assert {made_by[name].op_type for name in node.input} == {"DequantizeLinear"}
        if node.op_type == "Concat":
            assert len({stored[made_by[name].input[1]].item() for name in node.input}) == 1
        if node.op_type in ("Conv", "ConvTranspose"):
            data, weight, *bias = node.input
            assert made_by[weight].op_type == "DequantizeLinear"
            assert stored[made_by[weight].input[0]].dtype == np.int8
            while made_by[data].op_type in ("MaxPool", "Reshape"):
                data = made_by[data].input[0]
            assert made_by[data].op_type == "DequantizeLinear"
            assert [stored[name].dtype for name in bias] == [floats]
    for port in (*graph.input, *graph.output):
        assert port.type.tensor_type.elem_type == TensorProto.FLOAT
        assert port.type.tensor_type.shape.dim[0].dim_param


def simulated(path: Path, images: Tensor) -> np.ndarray:
    session = OrtCpuSession(path, disable_fusion=True)
    try:
        return session.run({INPUT: images.numpy()})[OUTPUT]
    finally:
        session.close()


@torch.no_grad()
@pytest.mark.parametrize("target", TENSORRT)
def test_built_in_networks_for_tensorrt(
    builtin: Any, quantize: Any, target: Target, tmp_path: Path
) -> None:
    """One export each: forms, values, batches, and NVIDIA's importer where it is installed."""
    half = target == "tensorrt-fp16"
    network = quantize(builtin.network, builtin.images, bits=4, unsigned_steps=PORTABLE)
    lowered = lower(network, target)
    path = export_onnx(lowered, builtin.images[:2], tmp_path / "m.onnx", float16=half)
    check_tensorrt_form(onnx.load(path), half)
    for batch in (1, 3):
        images = builtin.images[:batch]
        want = lowered(images).numpy()
        got = simulated(path, images)
        assert got.dtype == np.float32
        # Half sums turn some roundings over: a few steps of what the head reads.
        atol = 0.05 * np.abs(want).max() if half else 1e-5
        np.testing.assert_allclose(got, want, atol=atol)
    if importlib.util.find_spec("tensorrt_rtx"):
        answer = import_onnx(path, "rtx")
        assert answer, answer.problems
        assert not answer.warnings


@torch.no_grad()
def test_portable_students_keep_their_integer_kernels(
    builtin: Any, quantize: Any, tmp_path: Path
) -> None:
    """The clip at 127 of a uint8 lies between Q and DQ, where kernels are found around it."""
    network = quantize(builtin.network, builtin.images, unsigned_steps=PORTABLE)
    lowered = lower(network, "ort-cpu")
    path = export_onnx(lowered, builtin.images[:2], tmp_path / "m.onnx")
    report = kernel_report(path).require()
    assert [layer.op_type for layer in report.float] == ["Gemm"]  # the head
    assert (report.quantize, report.dequantize) == (1, 1)
    unsigned = [m for m in lowered.modules() if isinstance(m, FakeQuantize) and m.top == PORTABLE]
    assert unsigned
    assert report.operators["Clip"] == len(unsigned)
    want = network(builtin.images).numpy()
    np.testing.assert_allclose(simulated(path, builtin.images), want, atol=1e-5)


class Special(nn.Module):
    """Concat of values on different grids, a transposed convolution, a shortcut with gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.short = PadShortcut(6, 9, 2)
        self.last = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.a(x)), 3 * self.b(x)], 1)
        x = self.short(torch.relu(self.up(x)))
        return self.last(x.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("target", TENSORRT)
def test_concats_shortcuts_and_transposed_convolutions(target: Target, tmp_path: Path) -> None:
    x = torch.randn(8, 3, 6, 6)
    model = Special()
    model.short.source_O = torch.tensor([5, -1, 0, 3, -1, 2, 1, 4, -1])
    network = trace(model.eval())
    attach_quantizers(network, Quantization(unsigned_steps=PORTABLE))
    calibrate(network, [x])
    lowered = lower(network, target)
    if target == "tensorrt":
        torch.testing.assert_close(lowered.double()(x.double()), network.double()(x.double()))
        lowered = lower(network.float(), target)
    half = target == "tensorrt-fp16"
    path = export_onnx(lowered, x[:2], tmp_path / "m.onnx", float16=half)
    check_tensorrt_form(onnx.load(path), half)
    np.testing.assert_allclose(simulated(path, x), lowered(x).numpy(), atol=0.02 if half else 1e-5)
    if importlib.util.find_spec("tensorrt_rtx"):
        assert import_onnx(path, "rtx")


class Rectified(nn.Module):
    """Concat of values that are never below zero, on different grids."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.c, self.last = nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.a(x)), torch.relu(3 * self.b(x))], 1)
        return self.last(torch.relu(self.c(x)).mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("steps", [WIDE, PORTABLE])
def test_a_concat_of_rectified_values_has_no_steps_below_zero(steps: int, tmp_path: Path) -> None:
    x = torch.randn(64, 3, 6, 6)
    network = trace(Rectified().eval())
    attach_quantizers(network, Quantization(unsigned_steps=steps))
    calibrate(network, [x], "max")
    joint = network.get_submodule("quantizers.cat")
    assert isinstance(joint, ActivationQuantizer)
    seen: list[Tensor] = []
    handle = joint.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(x)
    handle.remove()
    assert float(seen[0].min()) == 0
    codes = seen[0] / joint.step()
    assert steps - 2 <= float(codes.max().round()) <= steps  # all of the grid is in use

    for target in TARGETS if steps == PORTABLE else ("ort-cpu",):
        lowered = lower(copy.deepcopy(network).double(), target)
        wanted = network.double()(x.double())
        half = target == "tensorrt-fp16"
        torch.testing.assert_close(
            lowered(x.double()), wanted, atol=0.02 if half else 1e-6, rtol=1e-4
        )
    network.float()
    path = export_onnx(lower(network), x[:2], tmp_path / "m.onnx")
    report = kernel_report(path).require()
    assert report.operators["QLinearConcat"] == 1
    want = network(x).numpy()
    np.testing.assert_allclose(simulated(path, x), want, atol=1e-5)
    session = OrtCpuSession(path)
    got = session.run({INPUT: x.numpy()})[OUTPUT]
    session.close()
    head = network.get_submodule("last").weight.abs().sum(1)  # type: ignore[operator, union-attr]
    step_C = (network.get_submodule("quantizers.mean").step() * head).numpy()  # type: ignore[operator, union-attr]
    assert (np.abs(got - want) <= 1.01 * step_C).all()


@needs_rtx
@pytest.mark.parametrize("target", TENSORRT)
def test_engine_of_a_residual_network(
    resnet: Any, quantize: Any, target: Target, tmp_path: Path
) -> None:
    network = quantize(resnet.network, resnet.images, unsigned_steps=PORTABLE)
    path = export_onnx(
        lower(network, target),
        resnet.images[:2],
        tmp_path / "m.onnx",
        float16=target == "tensorrt-fp16",
    )
    settings = BuildSettings(runtime="rtx", keep_timing=False)
    built = build_engine(path, tmp_path / "m.plan", settings)
    assert built.plan.stat().st_size > 0


@torch.no_grad()
@pytest.mark.parametrize("target", TARGETS)
def test_float_networks_have_a_form_too(target: Target, resnet: Any, tmp_path: Path) -> None:
    half = target == "tensorrt-fp16"
    path = export_onnx(
        lower(resnet.network, target), resnet.images[:2], tmp_path / "m.onnx", float16=half
    )
    model = onnx.load(path)
    assert not any(node.op_type.endswith("QuantizeLinear") for node in model.graph.node)
    want = resnet.network(resnet.images).numpy()
    got = simulated(path, resnet.images)
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max() if half else 1e-4)
    if target != "ort-cpu" and importlib.util.find_spec("tensorrt_rtx"):
        assert import_onnx(path, "rtx")
