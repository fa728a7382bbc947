"""Each loss between logits against a small NumPy computation of its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.losses.logits import dist, dkd, kl, logit_mse

shapes = (st.integers(1, 5), st.integers(2, 6), st.floats(0.5, 8), st.integers(0, 9))


def pair(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=shape), random.normal(size=shape)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


@given(*shapes)
def test_kl(b: int, c: int, temperature: float, seed: int) -> None:
    s, t = pair(b, c, seed=seed)
    expected = (
        temperature**2 * divergence(softmax(t / temperature), softmax(s / temperature)).mean()
    )
    found = kl(torch.tensor(s), torch.tensor(t), temperature)
    assert float(found) == pytest.approx(expected, abs=1e-10)


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


@given(*shapes)
def test_kl_of_divided_logits_is_divided_by_the_squared_temperature(
    b: int, c: int, temperature: float, seed: int
) -> None:
    s, t = map(torch.tensor, pair(b, c, seed=seed))
    torch.testing.assert_close(
        kl(s * temperature, t * temperature, temperature), temperature**2 * kl(s, t, 1.0)
    )


def test_a_learned_temperature_gets_a_gradient_and_may_differ_by_sample() -> None:
    s, t = map(torch.tensor, pair(3, 4))
    each_B = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    found = kl(s, t, each_B)
    found.backward()
    alone = [float(kl(s[i : i + 1], t[i : i + 1], float(each_B[i]))) for i in range(3)]
    assert float(found) == pytest.approx(np.mean(alone))
    assert (each_B.grad != 0).all()
    one = torch.tensor(3.0, requires_grad=True)
    assert float(kl(s, t, one)) == pytest.approx(float(kl(s, t, 3.0)))
    for loss in (dist, kl):
        assert torch.autograd.grad(loss(s, t, temperature=one), one)[0] != 0


@given(*shapes)
def test_dkd(b: int, c: int, temperature: float, seed: int) -> None:
    s, t = pair(b, c, seed=seed)
    labels = np.random.default_rng(seed).integers(c, size=b)
    expected = 0.0
    for z_s, z_t, y in zip(s, t, labels, strict=True):
        q, p = softmax(z_s[None] / temperature)[0], softmax(z_t[None] / temperature)[0]
        target = divergence(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        others = divergence(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        expected += temperature**2 * (1.5 * target + 3 * others) / b
    found = dkd(torch.tensor(s), torch.tensor(t), torch.tensor(labels), 1.5, 3.0, temperature)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@given(*shapes)
def test_dkd_with_the_teachers_doubt_as_beta_is_kl(
    b: int, c: int, temperature: float, seed: int
) -> None:
    s, t = map(torch.tensor, pair(b, c, seed=seed))
    labels_B = torch.randint(c, (b,))
    doubt_B = 1 - F.softmax(t / temperature, 1).gather(1, labels_B[:, None])[:, 0]
    parts = [
        dkd(s[i : i + 1], t[i : i + 1], labels_B[i : i + 1], 1.0, float(doubt_B[i]), temperature)
        for i in range(b)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), kl(s, t, temperature))


def test_dkd_of_huge_logits_is_finite() -> None:
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = dkd(s, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_dkd_needs_two_classes() -> None:
    with pytest.raises(ConfigError, match="1 class given"):
        dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


@given(st.integers(2, 5), st.integers(3, 6), st.floats(0.5, 8), st.integers(0, 9))
def test_dist(b: int, c: int, temperature: float, seed: int) -> None:
    s, t = pair(b, c, seed=seed)
    q, p = softmax(s / temperature), softmax(t / temperature)
    inter = np.mean([1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(b)])
    intra = np.mean([1 - np.corrcoef(q[:, i], p[:, i])[0, 1] for i in range(c)])
    expected = temperature**2 * (0.7 * inter + 1.3 * intra)
    found = dist(torch.tensor(s), torch.tensor(t), 0.7, 1.3, temperature)
    assert float(found) == pytest.approx(expected, abs=1e-8)


def test_dist_of_one_sample_looks_at_its_classes_alone() -> None:
    s, t = map(torch.tensor, pair(1, 5))
    assert float(dist(s, t)) == float(dist(s, t, 1.0, 0.0)) > 0
    assert float(dist(s, t, 0.0, 1.0)) == 0


def test_dist_of_logits_that_do_not_vary_is_finite() -> None:
    s = torch.zeros(3, 4, requires_grad=True)
    loss = dist(s, torch.randn(3, 4))
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("value", [0.3, -7.0, 1e4])
def test_dist_takes_what_rounding_leaves_of_equal_logits_for_nothing(value: float) -> None:
    s = torch.full((6, 7), value, requires_grad=True)  # 1/7 has no exact float32
    dist(s, torch.randn(6, 7)).backward()
    assert s.grad.abs().max() < 1e-6
    steep = torch.full((6, 7), value)
    steep[:, 0] += 1.0
    assert float(dist(steep, steep)) == pytest.approx(
        1.0
    )  # its samples are equal, its classes are not


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_logit_mse(b: int, c: int, seed: int) -> None:
    s, t = pair(b, c, seed=seed)
    found = logit_mse(torch.tensor(s), torch.tensor(t))
    assert float(found) == pytest.approx(((s - t) ** 2).mean(), rel=1e-9)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 9))
def test_logits_may_be_shifted_and_samples_reordered(b: int, c: int, seed: int) -> None:
    s, t = map(torch.tensor, pair(b, c, seed=seed))
    labels_B, order = torch.arange(b) % c, torch.randperm(b)
    for loss in (kl, dist, lambda s, t, y=labels_B: dkd(s, t, y)):
        torch.testing.assert_close(loss(s + 7.0, t - 3.0), loss(s, t))
    torch.testing.assert_close(dist(s[order], t[order]), dist(s, t))
    torch.testing.assert_close(
        dkd(s[order], t[order], labels_B[order]), dkd(s, t, labels_B), rtol=1e-9, atol=1e-12
    )
