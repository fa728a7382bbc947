"""Each relational loss against a small NumPy computation of its equation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolchain.distillation.losses.relations import pkt, rkd, sp

batches, seeds = st.integers(2, 6), st.integers(0, 9)


def features(b: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(b, 3, 2, 2)), random.normal(size=(b, 5))


def huber(x: float) -> float:
    return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5


@given(batches, seeds)
def test_sp(b: int, seed: int) -> None:
    def similarities(f: np.ndarray) -> np.ndarray:
        gram = f.reshape(b, -1) @ f.reshape(b, -1).T
        return gram / np.linalg.norm(gram, axis=1, keepdims=True)

    s, t = features(b, seed)
    expected = np.linalg.norm(similarities(s) - similarities(t)) ** 2 / b**2
    assert float(sp(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, rel=1e-9)


@given(batches, seeds, st.floats(0, 30), st.floats(0, 30))
def test_rkd(b: int, seed: int, distance: float, angle: float) -> None:
    def relations(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = f.reshape(b, -1)
        d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(b)] for i in range(b)])
        mean = np.mean([d[i, j] for i, j in itertools.permutations(range(b), 2)])
        cosines = np.zeros((b, b, b))
        for i, j, k in itertools.product(range(b), repeat=3):
            if i not in (j, k):
                cosines[i, j, k] = (x[j] - x[i]) @ (x[k] - x[i]) / d[i, j] / d[i, k]
        return d / mean, cosines

    s, t = features(b, seed)
    (d_s, a_s), (d_t, a_t) = relations(s), relations(t)
    expected = distance * np.mean([huber(x) for x in (d_s - d_t).flat])
    expected += angle * np.mean([huber(x) for x in (a_s - a_t).flat])
    found = rkd(torch.tensor(s), torch.tensor(t), distance, angle)
    assert float(found) == pytest.approx(expected, rel=1e-7, abs=1e-12)


@given(batches, seeds)
def test_pkt(b: int, seed: int) -> None:
    def chances(f: np.ndarray) -> list[list[float]]:
        x = f.reshape(b, -1)
        near = [[(u @ v / np.linalg.norm(u) / np.linalg.norm(v) + 1) / 2 for v in x] for u in x]
        return [[p / sum(row) for p in row] for row in near]

    s, t = features(b, seed)
    q, p = chances(s), chances(t)
    expected = np.mean(
        [
            p[i][j] * math.log((p[i][j] + 1e-7) / (q[i][j] + 1e-7))
            for i in range(b)
            for j in range(b)
        ]
    )
    assert float(pkt(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [sp, rkd, pkt])
@given(batches, seeds)
def test_what_a_relation_does_not_see(loss: Callable[..., Tensor], b: int, seed: int) -> None:
    s, t = map(torch.tensor, features(b, seed))
    order, value = torch.randperm(b), loss(s, t)
    torch.testing.assert_close(loss(s[order], t[order]), value)
    torch.testing.assert_close(loss(3 * s, t / 2), value)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    torch.testing.assert_close(loss(s.flatten(1) @ rotation, t), value)
    assert float(loss(s, s * 2)) == pytest.approx(0, abs=1e-9)


@given(batches, seeds)
def test_rkd_does_not_see_an_offset(b: int, seed: int) -> None:
    s, t = map(torch.tensor, features(b, seed))
    torch.testing.assert_close(rkd(s + 5.0, t - 3.0), rkd(s, t))


def test_rkd_of_far_away_samples_keeps_its_digits_in_float32() -> None:
    s, t = map(torch.tensor, features(6, 0))
    near = rkd(s, t)
    torch.testing.assert_close(
        rkd((s + 50.0).float(), t.float()).double(), near, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("loss", [sp, rkd, pkt])
def test_equal_samples_and_zero_samples_are_finite(loss: Callable[..., Tensor]) -> None:
    t = torch.randn(4, 5)
    for s in (torch.ones(4, 3), torch.zeros(4, 3), torch.eye(4, 3), -torch.eye(4, 3)):
        s = s.clone().requires_grad_()
        value = loss(s, t)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(s.grad).all()
        assert s.grad.abs().max() < 1e3


def test_opposite_samples_are_finite() -> None:
    s = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    value = pkt(s, -s.detach() + 0.1)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


def test_a_part_of_rkd_can_be_left_out() -> None:
    s, t = map(torch.tensor, features(4, 0))
    both = rkd(s, t, 25.0, 0.0) + rkd(s, t, 0.0, 50.0)
    torch.testing.assert_close(both, rkd(s, t))
    assert float(rkd(s.requires_grad_(), t, 0.0, 0.0)) == 0
    rkd(s, t, 0.0, 0.0).backward()
