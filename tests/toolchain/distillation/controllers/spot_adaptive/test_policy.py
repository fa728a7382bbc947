"""SAKD's policy: choices are one-hot, their gradient is the softened one's, and noise is repeatable."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolchain.distillation.controllers.spot_adaptive.policy import (
    TEACHER,
    Policy,
    annealed,
    channels,
    gumbel,
    pooled,
    straight_through,
)


@given(st.integers(1, 9), st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 99))
def test_choices_are_exactly_one_hot(b: int, spots: int, tau: float, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    v_BS2 = torch.randn(b, spots, 2, generator=noise, requires_grad=True)
    w_BS2 = straight_through(v_BS2, gumbel((b, spots, 2), noise), tau)
    assert set(w_BS2.flatten().tolist()) <= {0.0, 1.0}
    assert torch.equal(w_BS2.sum(-1), torch.ones(b, spots))


def test_the_gradient_is_that_of_the_softened_choices() -> None:
    torch.manual_seed(0)
    v_BS2 = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    noise_BS2 = gumbel((4, 3, 2), torch.Generator().manual_seed(1)).double()
    weights_BS2 = torch.randn(4, 3, 2, dtype=torch.float64)
    (straight_through(v_BS2, noise_BS2, 2.0) * weights_BS2).sum().backward()
    assert v_BS2.grad is not None

    def soft(v_BS2: np.ndarray) -> float:
        e_BS2 = np.exp((v_BS2 + noise_BS2.numpy()) / 2.0)
        y_BS2 = e_BS2 / e_BS2.sum(-1, keepdims=True)
        return float((y_BS2 * weights_BS2.numpy()).sum())

    step, values = 1e-6, v_BS2.detach().numpy()
    for index in np.ndindex(values.shape):
        up, down = values.copy(), values.copy()
        up[index] += step
        down[index] -= step
        expected = (soft(up) - soft(down)) / (2 * step)
        assert v_BS2.grad[index].item() == pytest.approx(expected, abs=1e-8)


def test_the_likelier_way_is_taken_as_often_as_softmax_says() -> None:
    v_BS2 = torch.tensor([1.0, 0.0]).expand(20_000, 1, 2)
    noise_BS2 = gumbel((20_000, 1, 2), torch.Generator().manual_seed(0))
    taken = straight_through(v_BS2, noise_BS2, 5.0)[..., TEACHER].mean().item()
    assert taken == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)  # whatever tau is


def test_noise_is_gumbel_and_goes_on_from_a_saved_state() -> None:
    noise = torch.Generator().manual_seed(3)
    drawn = gumbel((50_000,), noise)
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert drawn.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)
    state = noise.get_state()
    following = gumbel((5,), noise)
    noise.set_state(state)
    assert torch.equal(gumbel((5,), noise), following)


def test_a_head_start_sends_every_sample_the_teachers_way_at_first() -> None:
    torch.manual_seed(0)
    features = torch.randn(64, 6, 4, 4), torch.randn(64, 3, 4, 4)
    noise_BS2 = gumbel((64, 4, 2), torch.Generator().manual_seed(0))
    ahead, level = Policy(6, 3, 4, head_start=True), Policy(6, 3, 4)
    assert straight_through(ahead(*features), noise_BS2, 5.0)[..., TEACHER].mean() > 0.99
    assert 0.2 < straight_through(level(*features), noise_BS2, 5.0)[..., TEACHER].mean() < 0.8


def test_the_policy_sees_means_and_gives_networks_no_gradient() -> None:
    teacher = torch.randn(2, 6, 4, 4, requires_grad=True)
    student = torch.randn(2, 9, 3, requires_grad=True)  # nine tokens
    policy = Policy(6, 3, 2)
    v_BS2 = policy(teacher, student)
    assert v_BS2.shape == (2, 2, 2)
    v_BS2.sum().backward()
    assert teacher.grad is None and student.grad is None
    assert policy.linear.weight.grad is not None
    expected = torch.cat([teacher.mean((2, 3)), student.mean(1)], 1)
    assert torch.allclose(v_BS2.flatten(1), policy.linear(expected), atol=1e-6)


def test_features_of_every_kind_have_channels_and_a_mean() -> None:
    for shape, wide in (((2, 5), 5), ((2, 9, 5), 5), ((2, 5, 3, 3), 5)):
        assert channels(torch.Size(shape)) == wide
        assert pooled(torch.ones(shape)).shape == (2, wide)


def test_tau_goes_from_start_to_end() -> None:
    assert annealed(5.0, 0.5, 0.0) == 5.0
    assert annealed(5.0, 0.5, 1.0) == 0.5
    assert annealed(5.0, 5.0, 0.37) == 5.0
    assert 0.5 < annealed(5.0, 0.5, 0.9) < annealed(5.0, 0.5, 0.1) < 5.0
