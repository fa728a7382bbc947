"""Every seeded fault is caught, and blamed on the layer that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from exporters.blame.graph_layers import GraphLayers
from toolchain.data.held_out import samples_for
from toolchain.proof import expected
from toolchain.proof.proving import Proof, prove
from toolchain.training.progress import Progress

PLAIN = ("resnet", "vgg", "mobilenet")
RESIDUAL = ("resnet", "resnet-conv", "mobilenet")


@pytest.fixture
def proved(
    case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, onnx.ModelProto], Proof]:
    """The proof of a damaged bundle, on its own samples; the fresh export is the one already made."""

    def proved(name: str, model: onnx.ModelProto) -> Proof:
        found = case(name)
        monkeypatch.setattr(expected, "fresh_export", lambda *_: found.models["ort-cpu"])
        bundle = found.bundle(tmp_path, model)
        (proof,) = prove(bundle, (), samples_for(bundle, None), Progress(quiet=True))
        return proof

    return proved


def middle(model: onnx.ModelProto) -> str:
    """A quantized convolution in the middle."""
    layers = GraphLayers(model)
    quantized = {layers.of(quantize) for quantize, _ in layers.pairs()}
    names = [layers.of(node) for node in layers.weighted() if node.op_type == "Conv"]
    names = [name for name in names if name in quantized and "shortcut" not in name]
    return names[len(names) // 2]


@pytest.mark.parametrize("name", PLAIN)
def test_the_student_itself_is_proved(name: str, case: Any, proved: Any) -> None:
    proof = proved(name, case(name).model)
    assert proof, proof.failures
    assert proof.blame is None
    assert [stand.name for stand in proof.ladder.stands] == ["torch", "simulated", "fused"]
    assert proof.changed == ()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("what", ["weight", "activation"])
def test_a_scale_times_four(
    name: str, what: str, case: Any, proved: Any, faults: ModuleType
) -> None:
    model = case(name).model
    layer = middle(model)
    damage = faults.weight_scale_times if what == "weight" else faults.activation_scale_times
    proof = proved(name, damage(model, layer))
    assert not proof
    assert proof.blame is not None
    assert proof.blame.layers[0] == layer
    assert "4 times what it should be" in proof.failures[-1]
    # Values alone, without the comparison of the files, say the same.
    assert proof.blame.parted[0].layer == layer
    if what == "weight":  # and, back to float with the student's weights, it gives most back
        assert proof.blame.costs[0].layer == layer
    if what == "weight" and name != "mobilenet":  # whose decisions are all the same
        assert proof.ladder.failed is not None
        assert (proof.ladder.failed.above, proof.ladder.failed.below) == ("torch", "simulated")


@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_norm_left_unfolded(name: str, case: Any, proved: Any, faults: ModuleType) -> None:
    model = case(name).model
    layer = middle(model)
    proof = proved(name, faults.batch_norm_unfolded(model, layer))
    assert not proof
    assert proof.ladder, "it computes the same, only in float"
    assert proof.kernels is not None
    assert [each.name for each in proof.kernels.float_convolutions] == [f"{layer}/Conv"]
    assert "BatchNormalization" in proof.kernels.float_convolutions[0].reason
    assert proof.blame is not None and proof.blame.layers == (layer,)


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_residual_branch_unquantized(
    name: str, case: Any, proved: Any, faults: ModuleType
) -> None:
    model = case(name).model
    layer = next(each for each in faults.residual_branches(model) if "shortcut" not in each)
    proof = proved(name, faults.pair_deleted(model, layer))
    assert not proof
    assert proof.kernels is not None
    assert f"{layer}/Conv" in {each.name for each in proof.kernels.float_convolutions}
    assert proof.blame is not None and proof.blame.layers[0] == layer


@pytest.mark.parametrize("name", PLAIN)
def test_a_pair_deleted(name: str, case: Any, proved: Any, faults: ModuleType) -> None:
    model = case(name).model
    layer = middle(model)
    proof = proved(name, faults.pair_deleted(model, layer))
    assert not proof
    assert proof.kernels is not None
    assert f"{layer}/Conv" in {each.name for each in proof.kernels.float_convolutions}
    assert proof.blame is not None and proof.blame.layers[0] == layer


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "fault",
    ["weight_scale_times", "activation_scale_times", "batch_norm_unfolded", "pair_deleted"],
)
def test_a_fault_in_a_file_for_tensorrt(
    name: str,
    fault: str,
    case: Any,
    tmp_path: Path,
    faults: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No engine runs here: the file itself has to tell."""
    found = case(name, "tensorrt")
    monkeypatch.setattr(expected, "fresh_export", lambda *_: found.models["tensorrt"])
    model = onnx.load(found.models["tensorrt"])
    layer = middle(model)
    bundle = found.bundle(tmp_path, getattr(faults, fault)(model, layer), "tensorrt")
    (proof,) = prove(bundle, (), samples_for(bundle, None), Progress(quiet=True))
    assert not proof
    assert proof.blame is not None and proof.blame.layers[0] == layer
