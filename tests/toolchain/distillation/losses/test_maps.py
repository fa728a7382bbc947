"""Each loss between feature maps against a small NumPy computation of its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deploy.errors import ConfigError
from toolchain.distillation.losses.maps import ab, at, fitnet, fsp, nst

few = st.integers(1, 4)
seeds = st.integers(0, 9)


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tokens(f: np.ndarray) -> Tensor:
    """The same map as tokens [B, N, C]."""
    return torch.tensor(f.reshape(*f.shape[:2], -1).transpose(0, 2, 1).copy())


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4), (1, 5, 7)])
def test_fitnet(shape: tuple[int, ...]) -> None:
    s, t = normal(*shape, seed=0), normal(*shape, seed=1)
    found = fitnet(torch.tensor(s), torch.tensor(t))
    assert float(found) == pytest.approx(((s - t) ** 2).mean(), rel=1e-9)


def attention(f: np.ndarray) -> np.ndarray:
    a = (f**2).sum(1).reshape(len(f), -1)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


@given(few, few, few, few, seeds)
def test_at(b: int, c: int, d: int, x: int, seed: int) -> None:
    s, t = normal(b, c, x, x, seed=seed), normal(b, d, x, x, seed=seed + 10)
    expected = ((attention(s) - attention(t)) ** 2).mean()
    assert float(at(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, abs=1e-12)
    assert float(at(tokens(s), tokens(t))) == pytest.approx(expected, abs=1e-12)
    assert float(at(tokens(s), torch.tensor(t))) == pytest.approx(expected, abs=1e-12)


@given(few, few, st.floats(0.1, 10), seeds)
def test_at_does_not_see_the_scale_nor_the_order_of_channels(
    b: int, c: int, factor: float, seed: int
) -> None:
    s, t = (torch.tensor(normal(b, c, 3, 3, seed=seed + i)) for i in (0, 10))
    torch.testing.assert_close(at(s * factor, t[:, torch.randperm(c)]), at(s, t))
    assert float(at(s, s * factor)) == pytest.approx(0, abs=1e-12)


@given(few, few, few, few, seeds)
def test_nst(b: int, c: int, d: int, x: int, seed: int) -> None:
    s, t = normal(b, c, x, x, seed=seed), normal(b, d, x, x, seed=seed + 10)

    def kernel(f: np.ndarray, g: np.ndarray) -> float:
        total = [
            (np.vdot(u, v) / np.linalg.norm(u) / np.linalg.norm(v)) ** 2
            for one, other in zip(f, g, strict=True)
            for u in one
            for v in other
        ]
        return float(np.mean(total))

    expected = kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    assert float(nst(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, abs=1e-10)
    assert float(nst(tokens(s), torch.tensor(t))) == pytest.approx(expected, abs=1e-10)
    assert expected > -1e-12


@given(few, few, seeds)
def test_nst_compares_distributions_of_channels(b: int, c: int, seed: int) -> None:
    s = torch.tensor(normal(b, c, 3, 3, seed=seed))
    assert float(nst(s, s[:, torch.randperm(c)])) == pytest.approx(0, abs=1e-12)
    assert float(nst(torch.cat([s, s], dim=1), s)) == pytest.approx(0, abs=1e-12)


@given(few, few, st.floats(0, 2), seeds)
def test_ab(b: int, c: int, margin: float, seed: int) -> None:
    s, t = normal(b, c, 3, 3, seed=seed), normal(b, c, 3, 3, seed=seed + 10)
    active = np.where(t > 0, np.maximum(margin - s, 0) ** 2, np.maximum(margin + s, 0) ** 2)
    found = ab(torch.tensor(s), torch.tensor(t), margin)
    assert float(found) == pytest.approx(active.mean(), abs=1e-12)


def test_ab_is_content_with_the_same_activations_beyond_the_margin() -> None:
    t = torch.tensor([[3.0, -0.1, 0.5, 0.0]])
    assert float(ab(torch.tensor([[1.0, -1.0, 9.0, -2.0]]), t)) == 0
    assert float(ab(torch.tensor([[1.0, -1.0, 9.0, 0.0]]), t)) == 0.25


@given(few, few, few, seeds)
def test_fsp(b: int, c: int, d: int, seed: int) -> None:
    s = normal(b, c, 4, 4, seed=seed), normal(b, d, 2, 2, seed=seed + 10)
    t = normal(b, c, 3, 3, seed=seed + 20), normal(b, d, 3, 3, seed=seed + 30)

    def flow(f: np.ndarray, g: np.ndarray) -> np.ndarray:
        if f.shape[2] == 4:
            f = f.reshape(b, c, 2, 2, 2, 2).max((3, 5))
        return np.einsum("bihw,bjhw->bij", f, g) / (f.shape[2] * f.shape[3])

    expected = ((flow(*s) - flow(*t)) ** 2).mean()
    student, teacher = (tuple(map(torch.tensor, both)) for both in (s, t))
    assert float(fsp(student, teacher)) == pytest.approx(expected, abs=1e-12)
    assert float(fsp(student, student)) == 0


def test_fsp_of_tokens_is_fsp_of_their_map() -> None:
    f, g = normal(2, 3, 4, 4, seed=0), normal(2, 5, 4, 4, seed=1)
    other = (torch.tensor(g[:, :3]), torch.tensor(g))
    as_map, as_tokens = (torch.tensor(f), torch.tensor(g)), (tokens(f), tokens(g))
    torch.testing.assert_close(fsp(as_tokens, other), fsp(as_map, other))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (((2, 3, 4, 4), (2, 6, 4, 4)), r"\(3, 6\) in the student and \(3, 5\) in the teacher"),
        (((2, 16, 3), (2, 17, 5)), r"\(16, 3\) and \(17, 5\) in one network"),
    ],
)
def test_fsp_refuses_what_does_not_fit(
    student: tuple[tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    teacher = (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ConfigError, match=message):
        fsp((torch.zeros(student[0]), torch.zeros(student[1])), teacher)


@given(st.integers(2, 5), seeds)
def test_samples_may_come_in_any_order(b: int, seed: int) -> None:
    s, t = (torch.tensor(normal(b, 3, 2, 2, seed=seed + i)) for i in (0, 10))
    order = torch.randperm(b)
    for loss in (fitnet, at, nst, ab):
        torch.testing.assert_close(loss(s[order], t[order]), loss(s, t))
    torch.testing.assert_close(fsp((s[order], s[order]), (t[order], t[order])), fsp((s, s), (t, t)))
