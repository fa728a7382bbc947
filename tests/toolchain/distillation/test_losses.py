"""Each loss against a small NumPy computation of its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import ConfigError
from toolchain.distillation.losses import LOSSES, at, distillation_loss, feature_mse, kl, logit_mse


def pair(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=shape), random.normal(size=shape)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.5, 8), st.integers(0, 9))
def test_kl(b: int, c: int, temperature: float, seed: int) -> None:
    s, t = pair(b, c, seed=seed)
    p, q = softmax(t / temperature), softmax(s / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    found = kl(torch.tensor(s), torch.tensor(t), temperature)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_kl_of_huge_logits_is_finite() -> None:
    s = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = kl(s, torch.tensor([[-1e4, 1e4]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_kl_gradient_keeps_its_scale_with_temperature() -> None:
    """For soft targets near uniform the gradient is (z_s - z_t) / (B C), whatever T (Hinton)."""
    s, t = (torch.tensor(x - x.mean(1, keepdims=True)) * 0.01 for x in pair(4, 10))
    for temperature in (20.0, 200.0):
        s = s.detach().requires_grad_()
        kl(s, t, temperature).backward()
        torch.testing.assert_close(s.grad, (s.detach() - t) / 40, rtol=2e-2, atol=1e-6)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_logit_mse(b: int, c: int, seed: int) -> None:
    s, t = pair(b, c, seed=seed)
    assert float(logit_mse(torch.tensor(s), torch.tensor(t))) == pytest.approx(
        ((s - t) ** 2).mean(), rel=1e-5
    )


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_attention_transfer_with_unequal_channels(b: int, c: int, d: int, x: int) -> None:
    s, t = pair(b, c, x, x)[0], pair(b, d, x, x, seed=1)[0]

    def attention(f: np.ndarray) -> np.ndarray:
        a = (f**2).sum(1).reshape(len(f), -1)
        return a / np.linalg.norm(a, axis=1, keepdims=True)

    expected = ((attention(s) - attention(t)) ** 2).mean()
    assert float(at(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, abs=1e-6)


def test_attention_of_dead_features_is_finite() -> None:
    s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = at(s, torch.ones(2, 5, 4, 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4), (1, 5, 7)])
def test_feature_mse(shape: tuple[int, ...]) -> None:
    s, t = pair(*shape)
    found = feature_mse(torch.tensor(s), torch.tensor(t))
    assert float(found) == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "logit_mse", "at", "feature_mse"])
def test_equal_tensors_cost_nothing_and_bf16_is_computed_in_float(name: str) -> None:
    x = torch.randn(4, 6, 2, dtype=torch.bfloat16)
    loss = LOSSES[name].function(x, x)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_a_name_has_one_owner() -> None:
    with pytest.raises(ValueError, match="already"):
        distillation_loss("kl", match="shape", source="somebody else")(logit_mse)
    assert LOSSES["kl"].function is kl


def test_an_unknown_loss_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'at'.*'kl'.*did you mean 'kl'"):
        LOSSES.look_up("kll")


def test_options_are_bound_and_unknown_ones_refused() -> None:
    s, t = (torch.tensor(x) for x in pair(3, 4))
    assert float(LOSSES["kl"].bind(temperature=2.0)(s, t)) == float(kl(s, t, 2.0))
    with pytest.raises(ConfigError, match="temperature"):
        LOSSES["kl"].bind(temprature=2.0)
    with pytest.raises(ConfigError, match="unknown 'temperature'"):
        LOSSES["at"].bind(temperature=2.0)


def test_every_loss_names_its_source() -> None:
    assert all(entry.source and entry.name == name for name, entry in LOSSES.items())
