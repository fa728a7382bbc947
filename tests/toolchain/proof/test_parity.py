"""The student as a session, and where a lowered network parts from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from deploy.errors import DeviceError
from exporters.blame.partings import EQUAL_DB, culprits
from exporters.onnx_from_torch import INPUT, OUTPUT
from toolchain.graph import trace
from toolchain.proof import parity
from toolchain.proof.parity import TorchSession, same_grid, torch_partings
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.flatten(x, 1))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(images: Tensor) -> fx.GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = trace(Net().eval())
    attach_quantizers(network, Quantization())
    calibrate(network, [images])
    return network


def test_a_torch_session_is_a_session(network: fx.GraphModule, images: Tensor) -> None:
    session = TorchSession(network, (3, 8, 8), 4)
    assert [(port.name, port.shape) for port in session.inputs] == [(INPUT, (None, 3, 8, 8))]
    assert [(port.name, port.shape) for port in session.outputs] == [(OUTPUT, (None, 4))]
    with torch.no_grad():
        want = network(images).numpy()
    got = session.run({INPUT: images.numpy()})[OUTPUT]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    for feeds in (
        {"pictures": images.numpy()},
        {INPUT: images.numpy()[:, :2]},
        {INPUT: images.double().numpy()},
    ):
        with pytest.raises(DeviceError, match="refused the inputs"):
            session.run(feeds)
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run({INPUT: images.numpy()})


def test_a_lowered_network_is_the_student_at_every_quantizer(
    network: fx.GraphModule, images: Tensor
) -> None:
    found = torch_partings(network, "ort-cpu", images.numpy())
    assert [each.layer for each in found] == ["x", "relu", "relu_1", "output"]
    assert all(each.snr_db > 100 for each in found)
    assert culprits(found) == []


def test_a_fault_of_the_lowering_is_at_its_quantizer(
    network: fx.GraphModule, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = parity.lower

    def faulty(*arguments: Any) -> fx.GraphModule:
        lowered = lower(*arguments)
        lowered.get_submodule("second").bias_O.add_(1.0)  # type: ignore[operator, union-attr]
        return lowered

    monkeypatch.setattr(parity, "lower", faulty)
    found = torch_partings(network, "ort-cpu", images.numpy())
    assert found[1].snr_db > 100
    assert culprits(found)[0].layer == "relu_1"
    assert found[0].snr_db <= EQUAL_DB


@pytest.mark.parametrize(("steps", "same"), [(255, False), (127, True)])
def test_a_grid_is_the_targets_own_if_it_reaches_no_further(steps: int, same: bool) -> None:
    from toolchain.checkpoint import Spec

    spec = Spec(
        "mlp", None, {}, (1, 8, 8), ("0", "1"), quantization=Quantization(unsigned_steps=steps)
    )
    assert same_grid(spec, "tensorrt") == same
    assert same_grid(spec, "ort-cpu")
    assert not same_grid(spec.plain(), "ort-cpu")
