"""What ships computes what was trained: in float64 to rounding, in ONNX Runtime to a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, fx, nn

from deploy.errors import StructureError
from deploy.sessions.ort import OrtCpuSession
from exporters import qdq_ops
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from exporters.ort_graph import kernel_report
from exporters.proof.verify import Tolerance, verify
from toolchain.graph import trace
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_views, latent_parameter, strip_views, weight_view
from toolchain.quantization.lowered_grids import fixed_grid
from toolchain.quantization.lowered_layers import IntegerLayer
from toolchain.quantization.lowering import lower
from toolchain.quantization.weights import WeightView
from toolchain.structure.masks import views_of


def difference(one: nn.Module, two: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((one(x) - two(x)).abs().max())


def student(model: nn.Module, x: Tensor, **settings: Any) -> fx.GraphModule:
    network = trace(model.eval())
    attach_quantizers(network, Quantization(**settings))
    calibrate(network, [x])
    return network


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", ["lsq", "minmax"])
def test_lowered_is_the_student_in_float64(
    builtin: Any, quantize: Any, bits: int, kind: str
) -> None:
    network = quantize(builtin.network, builtin.images, bits=bits, kind=kind).double()
    lowered = lower(network)
    assert difference(network, lowered, builtin.images.double()) < 1e-9
    assert not any(isinstance(m, WeightView | ActivationQuantizer) for m in lowered.modules())
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in lowered.modules())


@pytest.mark.parametrize("attached", [False, True])
def test_lowered_float_network_is_the_network(builtin: Any, attached: bool) -> None:
    network = builtin.network.double()
    want = copy.deepcopy(network)
    if attached:
        attach_views(network)
    lowered = lower(network)
    assert difference(want, lowered, builtin.images.double()) < 1e-9
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in lowered.modules())


def test_lowering_leaves_its_source_and_the_random_state_alone(resnet: Any, quantize: Any) -> None:
    network = quantize(resnet.network, resnet.images)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    code, state = network.code, torch.get_rng_state()
    lower(network.train())
    assert network.code == code
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@given(
    channels=st.integers(1, 5),
    groups=st.booleans(),
    bias=st.booleans(),
    bits=st.integers(2, 8),
    seed=st.integers(0, 999),
)
def test_batch_norm_folds_exactly(
    channels: int, groups: bool, bias: bool, bits: int, seed: int
) -> None:
    """Factors of any sign and zero; the integers stay what they were, up to their sign."""
    torch.manual_seed(seed)
    inputs = channels if groups else 3
    conv = nn.Conv2d(inputs, channels, 3, bias=bias, groups=channels if groups else 1)
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 3.0)
    with torch.no_grad():
        norm.weight[0] = 0.0
    x = torch.randn(2, inputs, 6, 6)
    network = student(nn.Sequential(conv, norm, nn.ReLU()), x, bits=bits, edge_bits=bits).double()
    lowered = lower(network)
    layer = lowered.get_submodule("0")
    assert isinstance(layer, IntegerLayer)
    x = x.double()
    view = weight_view(conv)
    assert view is not None
    assert view.quantizer is not None
    with torch.no_grad():
        assert float((norm(conv(x)) - layer(x)).abs().max()) < 1e-12
        q_OX, _ = view.quantizer.integers(latent_parameter(conv, "weight"))
    sign_O = latent_parameter(norm, "weight").sign().to(torch.int8).view(-1, 1, 1, 1)
    # Bits to spare make the step finer to which ONNX Runtime rounds a bias; 7 saturate nowhere.
    assert torch.equal(layer.q_OX, q_OX * sign_O * 2 ** max(7 - bits, 0))
    for_others = lower(network, "tensorrt").get_submodule("0")
    assert isinstance(for_others, IntegerLayer)
    assert torch.equal(for_others.q_OX, q_OX * sign_O)
    assert (layer.scale_O > 0).all()
    assert difference(network, lowered, x) < 1e-12


def test_vanishing_factor_is_a_constant_channel() -> None:
    """A scale that rounds to zero must not become a scale of one."""
    conv, norm = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1e-45, 1.0]))
        norm.bias.copy_(torch.tensor([0.25, 0.5]))
    x = torch.randn(3, 2, 4, 4)
    network = student(nn.Sequential(conv, norm, nn.ReLU()), x)
    assert difference(network, lower(network), x) < 1e-6


def test_batch_norm_without_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(StructureError, match="track_running_stats=True"):
        lower(trace(model))


class Shared(nn.Module):
    """One convolution called twice, with a norm of its own behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.conv(F.relu(self.one(self.conv(x))))))


class PreActivation(nn.Module):
    """A norm that follows no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + self.b(F.relu(self.bn(y)))


class Means(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how, self.pool = nn.Conv2d(3, 4, 1), how, nn.AdaptiveAvgPool2d((1, 1))
        self.few = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.how == "method":
            return x.mean((-1, -2))
        if self.how == "keep":
            return torch.mean(x, dim=[2, 3], keepdim=True)
        if self.how == "module":
            return self.pool(x).flatten(1)
        if self.how == "function":
            return torch.flatten(F.adaptive_avg_pool2d(x, output_size=(1, 1)), start_dim=1)
        if self.how == "channels":
            return x.mean(1)
        return self.few(x).flatten(1, -1)


class Keywords(nn.Module):
    """Every tensor is passed by keyword."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.pad, self.how = PadShortcut(4, 6, 2), how

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(input=self.bn(input=self.a(input=x)))
        y = F.relu(input=torch.add(input=y, other=self.b(input=y)))
        y = self.pad(x=F.max_pool2d(input=y, kernel_size=2))
        if self.how == "mean":
            return torch.mean(input=y, dim=(2, 3))
        if self.how == "pool":
            y = F.adaptive_avg_pool2d(input=y, output_size=1)
            return torch.flatten(input=y, start_dim=1)
        return torch.flatten(input=y, end_dim=1).flatten(end_dim=-1, start_dim=1)


SPECIAL: list[tuple[str, Callable[[], nn.Module]]] = [
    ("shared", Shared),
    ("pre-activation", PreActivation),
    ("transposed", lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), nn.BatchNorm2d(5), nn.ReLU())),
    ("grouped-transposed", lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6), nn.ReLU())),
    ("pad-after-max", lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), PadShortcut(4, 7, 2), nn.Conv2d(7, 2, 1))),
    ("signed-pad", lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), PadShortcut(4, 6, 1), nn.Conv2d(6, 2, 1))),
    *[(f"mean-{how}", lambda how=how: Means(how))
      for how in ("method", "keep", "module", "function", "channels", "few")],
    *[(f"keywords-{how}", lambda how=how: Keywords(how)) for how in ("mean", "pool", "flatten")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "build"), SPECIAL)
@pytest.mark.parametrize("quantized", [True, False])
def test_unusual_networks(
    name: str, build: Callable[[], nn.Module], quantized: bool, randomize: Any
) -> None:
    model = build()
    randomize(model)
    x = torch.randn(3, 3, 8, 8)
    network = (student(model, x) if quantized else trace(model.eval())).double()
    lowered = lower(network)
    assert difference(network, lowered, x.double()) < 1e-9
    assert any("GlobalAveragePool" in type(m).__name__ for m in lowered.modules()) == (
        name in ("mean-method", "mean-keep", "mean-module", "mean-function",
                 "keywords-mean", "keywords-pool")
    )  # fmt: skip


def test_signed_shortcut_is_exact_with_channels_in_any_order() -> None:
    shortcut = PadShortcut(3, 5, 2)
    shortcut.source_O = torch.tensor([2, -1, 0, 1, -1])
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shortcut, nn.Conv2d(5, 2, 1))
    x = torch.randn(2, 3, 7, 7)
    network = student(model, x).double()
    lowered = lower(network)
    assert isinstance(lowered.get_submodule("1"), nn.Sequential)
    assert difference(network, lowered, x.double()) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("steps", [255, 127])
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_shortcut_behind_a_ceiling(steps: int, target: Any) -> None:
    """The grid of a ReLU6 ends at 6, and that of the shortcut behind it is the same."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU6(), PadShortcut(3, 5, 2), nn.Conv2d(5, 2, 1))
    x = 40 * torch.randn(2, 3, 7, 7)
    network = student(model, x, unsigned_steps=steps).double()
    quantizer = network.get_submodule("quantizers._1")
    quantizer.scale.fill_(9 / steps)  # type: ignore[operator, union-attr]
    lowered = lower(network, target)
    reach = 255 if target == "ort-cpu" and steps == 255 else 127
    for name in ("quantizers._1", "2.1"):
        grid = lowered.get_submodule(name)
        assert isinstance(grid, qdq_ops.FakeQuantize)
        assert grid.scale * reach == pytest.approx(6)
    if reach == steps:
        assert difference(network, lowered, x.double()) < 1e-6  # 6 / steps in float32


@pytest.mark.parametrize("absorbs", ["none", "relu", "relu6"])
def test_bypassed_quantizer_leaves_nothing(absorbs: Any) -> None:
    quantizer = ActivationQuantizer(absorbs, signed=absorbs == "none", bits=4)
    quantizer.set_bypass(True)
    x = torch.randn(100) * 9
    assert torch.equal(fixed_grid(quantizer)(x), quantizer(x))


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_activations_of_other_than_eight_bits_are_refused(bits: int) -> None:
    x = torch.randn(2, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    network = student(model, x, activation_bits=bits)
    with pytest.raises(StructureError, match=f"of {bits} bits; accepted for ort-cpu is 8"):
        lower(network)


@pytest.mark.parametrize("layer", [nn.Conv3d(1, 2, 1), nn.ConvTranspose1d(1, 2, 1)])
def test_layers_without_an_integer_form_are_refused(layer: nn.Module) -> None:
    network = trace(nn.Sequential(layer, nn.ReLU()))
    attach_quantizers(network, Quantization())
    with pytest.raises(StructureError, match="has no integer form.*keep_float"):
        lower(network)


def test_ignored_layers_are_exported_as_float() -> None:
    x = torch.randn(2, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU())
    network = student(model, x, ignore=("0",)).double()
    lowered = lower(network)
    assert type(lowered.get_submodule("0")) is nn.Conv2d
    assert isinstance(lowered.get_submodule("2"), IntegerLayer)
    assert difference(network, lowered, x.double()) < 1e-12


@torch.no_grad()
def test_baked_masks_and_stripped_views_lower_to_the_same(resnet: Any) -> None:
    network = attach_views(resnet.network)
    for module in network.modules():
        for view in views_of(module):
            view.keep_O[::3] = False
        if hasattr(module, "refresh"):
            module.refresh()
    want = network(resnet.images)
    lowered = lower(strip_views(network))
    torch.testing.assert_close(lowered(resnet.images), want, rtol=1e-5, atol=1e-6)


def onnx_of(network: fx.GraphModule, images: Tensor, folder: Path) -> Path:
    return export_onnx(lower(network), images[:2], folder / "model.onnx")


def run(path: Path, x: Tensor, disable_fusion: bool = False) -> np.ndarray:
    session = OrtCpuSession(path, disable_fusion=disable_fusion)
    try:
        return session.run({INPUT: x.numpy()})[OUTPUT]
    finally:
        session.close()


@torch.no_grad()
def test_built_in_networks_in_onnx_runtime(builtin: Any, quantize: Any, tmp_path: Path) -> None:
    """One export each, because an export takes a second: kernels, batches, grids and weights."""
    network = quantize(builtin.network, builtin.images, bits=4)
    path = onnx_of(network, builtin.images, tmp_path)
    report = kernel_report(path).require()
    layers = [m for m in lower(network).modules() if isinstance(m, IntegerLayer)]
    assert [layer.op_type for layer in report.float] == ["Gemm"]  # the head, on purpose
    assert not report.other_float
    assert len(report.integer) == len(layers)
    assert (report.quantize, report.dequantize) == (1, 1)

    # The logits have no grid; what the head reads has one.
    trained = [m for m in network.modules() if isinstance(m, ActivationQuantizer)]
    head = network.get_submodule("linear" if "resnet" in builtin.name else "classifier")
    one_step_C = (trained[-1].step() * head.weight.abs().sum(1)).numpy()  # type: ignore[operator, union-attr]
    for batch in (1, 3, 7):
        want = network(builtin.images[:batch]).numpy()
        got = run(path, builtin.images[:batch])
        assert got.shape == want.shape
        assert (np.abs(got - want) <= one_step_C + 1e-6).all()
        # Operator by operator in float, where no bias is rounded to int32, nothing differs.
        simulated = run(path, builtin.images[:batch], disable_fusion=True)
        np.testing.assert_allclose(simulated, want, atol=1e-3 * float(one_step_C.min()))

    model = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    written = sorted(tensors[node.input[1]].item() for node in nodes)
    grids = [m for m in lower(network).modules() if isinstance(m, qdq_ops.FakeQuantize)]
    assert written == sorted(np.float32(grid.scale).item() for grid in grids)
    shortcuts = sum(isinstance(m, PadShortcut) for m in network.modules())
    assert len(nodes) == len(trained) + shortcuts
    assert {q.step().item() for q in trained} == set(written)

    stored = sorted(array.tobytes() for array in tensors.values() if array.dtype == np.int8
                    and array.ndim > 1)  # fmt: skip
    assert stored == sorted(layer.q_OX.numpy().tobytes() for layer in layers)
    wide = [array for array in tensors.values() if array.dtype == np.float32 and array.ndim > 1]
    assert [array.size for array in wide] == [latent_parameter(head, "weight").numel()]


class OnGrid(nn.Module):
    """No head: what comes out is a quantized value, so that a step of the output exists."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.c, self.bn2 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.a(x)))
        x = F.relu6(self.bn1(self.b(x)))
        return torch.flatten(F.adaptive_avg_pool2d(self.bn2(self.c(x)), 1), 1)


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_onnx_runtime_is_within_one_step_of_the_student(
    bits: int, randomize: Any, tmp_path: Path
) -> None:
    model = OnGrid()
    randomize(model)
    x = torch.randn(64, 3, 8, 8)
    network = student(model, x, bits=bits, edge_bits=bits)
    path = onnx_of(network, x, tmp_path)
    kernel_report(path).require()
    step = network.get_submodule("quantizers.adaptive_avg_pool2d").step().item()  # type: ignore[operator, union-attr]
    want = network(x).numpy()
    codes = want / step
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    assert len(np.unique(np.rint(codes))) > 10
    session = OrtCpuSession(path)
    batches = [(x[i : i + 24].numpy(), want[i : i + 24].argmax(1)) for i in range(0, 64, 24)]
    verify(want, session, batches, Tolerance(0.9, 10.0, max_steps=1.0), one_step=step).require()
    session.close()


@torch.no_grad()
def test_signed_shortcut_and_masks_on_integer_kernels(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), PadShortcut(4, 6, 2), nn.Conv2d(6, 4, 1), nn.Flatten()
    )
    x = torch.randn(8, 3, 9, 9)
    network = student(model, x)
    path = onnx_of(network, x, tmp_path)
    report = kernel_report(path).require()
    assert len(report.integer) == 3
    step = network.get_submodule("quantizers._2").step().item()  # type: ignore[operator, union-attr]
    assert np.abs(run(path, x) - network(x).numpy()).max() <= step * (1 + 1e-3)


@pytest.mark.parametrize("scale", [-0.02, 1e-9, 1e-12])
def test_an_odd_step_ships_as_it_was_trained(scale: float, tmp_path: Path) -> None:
    """A learned step may cross zero, or make weights so small that the bias fits no int32."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )
    x = torch.randn(32, 3, 6, 6)
    network = student(model, x)
    view = weight_view(network.get_submodule("2"))
    assert view is not None and view.quantizer is not None
    with torch.no_grad():
        view.quantizer.scale_O[3] = scale
        latent_parameter(network.get_submodule("2"), "bias")[3] = 1.5
        want = network(x).numpy()
    session = OrtCpuSession(export_onnx(lower(network), x[:2], tmp_path / "m.onnx"))
    got = session.run({INPUT: x.numpy()})[OUTPUT]
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
