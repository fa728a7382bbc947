"""Activation quantizers: grids, calibration, views, bypass and state."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from toolchain.quantization.activations import ActivationQuantizer, Nonlinearity, observing
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import QuantizerKind

KINDS: tuple[QuantizerKind, ...] = ("lsq", "minmax")
ABSORBED: tuple[Nonlinearity, ...] = ("none", "relu", "relu6")


def plain(x: Tensor, absorbs: Nonlinearity) -> Tensor:
    return {"none": x, "relu": x.clamp_min(0), "relu6": x.clamp(0, 6)}[absorbs]


def quantizer_of(
    absorbs: Nonlinearity, values: Tensor, bits: int = 8, kind: QuantizerKind = "lsq"
) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(absorbs, signed=absorbs == "none", bits=bits, kind=kind)
    quantizer.to(values.dtype)
    quantizer.calibrate(plain(values, absorbs), "max")
    return quantizer.eval()


@pytest.mark.parametrize("absorbs", ABSORBED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_lie_on_the_grid_next_to_the_plain_ones(
    absorbs: Nonlinearity, kind: QuantizerKind, bits: int
) -> None:
    x = torch.linspace(-7, 7, 300, dtype=torch.float64).view(4, 3, 5, 5)
    quantizer = quantizer_of(absorbs, x, bits, kind)
    y, step = quantizer(x).detach(), float(quantizer.step().detach())
    assert y.dtype == x.dtype
    codes = y / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if absorbs == "none" else (0, 2**bits - 1)
    assert float(codes.min()) >= low - 1e-9
    assert float(codes.max()) <= high + 1e-9
    assert float((y - plain(x, absorbs)).abs().max()) <= step / 2 * (1 + 1e-9)
    assert len(codes.round().unique()) >= min(2**bits - 1, 100)


@pytest.mark.parametrize("absorbs", ABSORBED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_that_every_target_has_ends_at_127(
    absorbs: Nonlinearity, kind: QuantizerKind
) -> None:
    """Calibrated, trained with and ended as an unsigned grid of 7 bits; a signed one is as ever."""
    x = torch.linspace(-9, 9, 400, dtype=torch.float64).view(4, 4, 5, 5)
    quantizer = ActivationQuantizer(absorbs, signed=absorbs == "none", kind=kind, steps=127)
    quantizer.double().calibrate(plain(x, absorbs), "max")
    step = float(quantizer.step().detach())
    assert step == pytest.approx((6 if absorbs == "relu6" else 9) / 127)
    for values in (x, 2 * x):  # the second time a min-max grid has followed the range
        quantizer.train()(values)
        with torch.no_grad():
            y = quantizer.eval()(2 * values)
            step = float(quantizer.step())
        codes = y / step
        assert float(codes.max()) == pytest.approx(127)
        assert float(codes.min()) == pytest.approx(-128 if absorbs == "none" else 0)


@pytest.mark.parametrize("absorbs", ABSORBED)
@pytest.mark.parametrize("view", [View.TEACHER, View.LATENT])
def test_other_views_see_the_plain_nonlinearity(absorbs: Nonlinearity, view: View) -> None:
    x = torch.randn(4, 3, 5, 5) * 5
    quantizer = quantizer_of(absorbs, x, 4)
    with use_view(quantizer, view):
        assert torch.equal(quantizer(x), plain(x, absorbs))
    assert not torch.equal(quantizer(x), plain(x, absorbs))


@pytest.mark.parametrize("absorbs", ABSORBED)
def test_bypassed_quantizer_is_gone_from_the_student_alone(absorbs: Nonlinearity) -> None:
    x = torch.randn(4, 3, 5, 5) * 5
    quantizer = quantizer_of(absorbs, x, 4)
    quantizer.set_bypass(True)
    assert torch.equal(quantizer(x), x)
    with use_view(quantizer, View.TEACHER):
        assert torch.equal(quantizer(x), plain(x, absorbs))
    quantizer.set_bypass(False)
    assert not torch.equal(quantizer(x), plain(x, absorbs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bypass", [False, True])
def test_state_round_trip_with_bypass(kind: QuantizerKind, bypass: bool) -> None:
    x = torch.randn(64)
    quantizer = quantizer_of("none", x, 8, kind)
    quantizer.set_bypass(bypass)
    again = ActivationQuantizer("none", signed=True, kind=kind)
    again.set_bypass(not bypass)
    again.load_state_dict(quantizer.state_dict())
    assert again.bypassed is bypass
    assert torch.equal(again.eval()(x), quantizer(x))
    assert torch.equal(copy.deepcopy(again)(x), quantizer(x))


def test_ceiling_of_relu6_holds_however_wide_the_step() -> None:
    quantizer = ActivationQuantizer("relu6", signed=False).double()
    with torch.no_grad():
        quantizer.scale.fill_(1.0)
    top = quantizer(torch.tensor(50.0, dtype=torch.float64))
    assert top.item() == pytest.approx(6, abs=1e-12)


@pytest.mark.parametrize("absorbs", ABSORBED)
@pytest.mark.parametrize("bits", [2, 4, 8])
@given(seed=st.integers(0, 999), power=st.integers(1, 3))
def test_least_squares_is_no_worse_than_the_range(
    absorbs: Nonlinearity, bits: int, seed: int, power: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = plain(torch.randn(500, generator=draw) ** power, absorbs)
    quantizer = quantizer_of(absorbs, values, bits)

    def squared() -> float:
        return (quantizer(values) - values).double().square().mean().item()

    widest = squared()
    quantizer.calibrate(values, "mse")
    assert squared() <= widest * (1 + 1e-6)


def test_range_of_max_is_the_widest_value() -> None:
    values = torch.tensor([-3.0, 0.5, 2.0])
    quantizer = ActivationQuantizer("none", signed=True)
    quantizer.calibrate(values, "max")
    assert float(quantizer.scale.detach()) == pytest.approx(3 / 127)
    quantizer.calibrate(torch.zeros(3), "mse")
    assert torch.equal(quantizer(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minmax_follows_the_range_of_what_it_lets_through(dtype: torch.dtype) -> None:
    x = torch.tensor([-9.0, 1.0, 2.0], dtype=dtype)
    for absorbs, signed, widest in (("relu", False, 2.0), ("none", True, 9.0)):
        quantizer = ActivationQuantizer(absorbs, signed, kind="minmax", momentum=0.5).to(dtype)
        with torch.no_grad():
            quantizer.scale.fill_(1.0 / quantizer.high)
        quantizer.train()(x)
        assert float(quantizer.scale) * quantizer.high == pytest.approx((1 + widest) / 2)
        before = quantizer.scale.clone()
        quantizer.eval()(x)
        with use_view(quantizer.train(), View.TEACHER):
            quantizer(x)
        assert torch.equal(quantizer.scale, before)


def test_learned_step_gets_a_gradient_and_minmax_has_none() -> None:
    x = torch.randn(32)
    learned = quantizer_of("relu", x, kind="lsq")
    learned(x).sum().backward()
    assert learned.scale.grad is not None
    assert "scale" in dict(ActivationQuantizer("relu", False, kind="minmax").named_buffers())


def test_observing_lets_values_through_and_calibrates_at_the_end() -> None:
    network = nn.Sequential(
        ActivationQuantizer("relu", signed=False), ActivationQuantizer("none", signed=True)
    )
    with observing(network, "max"):
        for scale in (1.0, 3.0):
            x = torch.linspace(-scale, scale, 9)
            assert torch.equal(network(x), F.relu(x))
    assert float(network[0].scale.detach()) == pytest.approx(3 / 255)
    assert float(network[1].scale.detach()) == pytest.approx(3 / 127)
    assert not torch.equal(network(x / 7), F.relu(x / 7))


def test_quantizers_work_again_after_a_failed_observation() -> None:
    quantizer = quantizer_of("none", torch.ones(1))
    before = quantizer.scale.detach().clone()
    with pytest.raises(ZeroDivisionError), observing(quantizer):
        quantizer(torch.full((4,), 9.0))
        raise ZeroDivisionError
    assert torch.equal(quantizer.scale, before)
    assert float(quantizer(torch.tensor(9.0)).detach()) == pytest.approx(1.0)


@given(size=st.integers(1, 400_000))
def test_observed_sample_is_bounded_and_has_the_extremes(size: int) -> None:
    from toolchain.quantization.activations import _sample

    values = torch.arange(float(size))
    part = _sample(values)
    assert len(part) <= 65536 + 2
    assert {0.0, float(size - 1)} <= {float(part.min()), float(part.max())}


def test_a_quantizer_nobody_called_keeps_its_step() -> None:
    quantizer = quantizer_of("none", torch.ones(1))
    before = quantizer.scale.detach().clone()
    with observing(quantizer):
        pass
    assert torch.equal(quantizer.scale, before)
