"""Adds in one kernel against the quantizers and the add apart from each other: the same to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.quantization import kernels
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.residual_kernels import QuantizedAdd, fused_adds
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import QuantizerKind


@pytest.fixture
def compiled() -> Iterator[None]:
    if not kernels.use_compiled(True):
        pytest.skip("no C++ compiler and no CUDA device")
    yield
    kernels.use_compiled(False)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(
    memory_format=torch.channels_last
)


def student(kind: QuantizerKind = "minmax", shortcut: str = "pad") -> fx.GraphModule:
    torch.manual_seed(0)
    network = trace(build("cifar_resnet", depth=8, width=8, shortcut=shortcut))
    attach_quantizers(network, Quantization(kind=kind))
    calibrate(network, [IMAGES])
    return network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def adds(network: nn.Module) -> list[QuantizedAdd]:
    return [module for module in network.modules() if isinstance(module, QuantizedAdd)]


def step(network: nn.Module) -> Tensor:
    """Logits of a bf16 pass; gradients are left in the parameters."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        logits_BC: Tensor = network(IMAGES).float()
    logits_BC.square().sum().backward()
    return logits_BC.detach()


@pytest.mark.parametrize(
    ("kind", "shortcut"), [("minmax", "pad"), ("lsq", "pad"), ("minmax", "conv")]
)
def test_values_gradients_and_ranges_are_the_same(
    compiled: None, kind: QuantizerKind, shortcut: str
) -> None:
    apart = student(kind, shortcut)
    together = copy.deepcopy(apart)
    want = step(apart)
    with fused_adds(together):
        assert len(adds(together)) == 3
        got = step(together)
    assert torch.equal(got, want)
    theirs = dict(apart.named_parameters())
    for name, mine in together.named_parameters():
        other = theirs[name].grad
        assert (mine.grad is None) == (other is None)
        if mine.grad is None or other is None:
            continue
        if "scale" in name:  # summed in another order
            torch.testing.assert_close(mine.grad, other, rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(mine.grad, other), name
    buffers = dict(apart.named_buffers())
    for name, buffer in together.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_an_add_of_an_add(compiled: None) -> None:
    """As in networks without an activation behind their adds: one sum is a summand of the next."""
    torch.manual_seed(0)
    network = trace(build("mobilenet_v2", multiplier=0.25))
    attach_quantizers(network, Quantization(kind="minmax"))
    calibrate(network, [IMAGES])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = network.eval()(IMAGES)
        with fused_adds(network):
            assert len(adds(network)) > 1
            assert torch.equal(network(IMAGES), want)


def test_afterwards_the_network_is_what_it_was() -> None:
    network = student()
    graph, names = str(network.graph), list(network.state_dict())
    with fused_adds(network):
        assert str(network.graph) != graph
        assert list(network.state_dict()) == names
    assert str(network.graph) == graph
    assert not adds(network)
    with pytest.raises(ZeroDivisionError), fused_adds(network):
        raise ZeroDivisionError
    assert str(network.graph) == graph


@pytest.mark.parametrize("view", [View.TEACHER, View.LATENT, View.STUDENT])
def test_without_kernels_the_parts_are_called(view: View) -> None:
    """In float32, and in views that have no quantizers."""
    network = student().eval()
    with torch.no_grad(), use_view(network, view):
        want = network(IMAGES)
        with fused_adds(network):
            assert torch.equal(network(IMAGES), want)


def test_a_bypassed_quantizer_stays_bypassed(compiled: None) -> None:
    apart = student().eval()
    apart.get_submodule("quantizers").get_submodule(
        next(name for name, m in apart.quantizers.named_children() if m.signed)  # type: ignore[union-attr,operator]
    ).set_bypass(True)  # type: ignore[operator]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = apart(IMAGES)
        with fused_adds(apart):
            assert torch.equal(apart(IMAGES), want)


def test_what_somebody_watches_is_left_apart() -> None:
    network = student()
    watched: list[Tensor] = []
    with fused_adds(network):
        (first, *_) = (add._pair[0] for add in adds(network))
    first.register_forward_hook(lambda module, args, out: watched.append(out))
    with torch.no_grad(), fused_adds(network):
        assert len(adds(network)) == 2
        network(IMAGES)
    assert len(watched) == 1
