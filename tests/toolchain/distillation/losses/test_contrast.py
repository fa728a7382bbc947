"""CRD against a small NumPy computation of its equation, its memory and its negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deploy.errors import ConfigError
from toolchain.distillation.losses.contrast import ContrastiveRepresentation

SAMPLES = 11


def made(samples: int = SAMPLES, **options: float) -> ContrastiveRepresentation:
    return ContrastiveRepresentation((4, 3), (4, 5), samples, **{"dimensions": 6, **options})


def given_batch(b: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(b, n, generator=random, dtype=torch.float64) for n in (3, 5))
    index_B = torch.randperm(SAMPLES, generator=random)[:b]
    return s, t, index_B, index_B % 3


def embedded(loss: ContrastiveRepresentation, side: str, f: Tensor) -> np.ndarray:
    linear = getattr(loss, side).linear
    e = f.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    return e / np.linalg.norm(e, axis=1, keepdims=True)


def expected(loss: ContrastiveRepresentation, batch: tuple[Tensor, ...], known: bool) -> float:
    """With every other sample as a negative, those known to be of the same class left out."""
    s, t, index_B, labels_B = batch
    n, total = SAMPLES, 0.0
    labels = loss.labels_N.numpy()
    for mine, bank in (
        (embedded(loss, "student", s), loss.teacher_bank_ND.numpy()),
        (embedded(loss, "teacher", t), loss.student_bank_ND.numpy()),
    ):
        z = np.mean([np.exp(u @ bank[j] / 0.07) for u in mine for j in range(n)]) * n
        for u, i, y in zip(mine, index_B.tolist(), labels_B.tolist(), strict=True):
            others = [j for j in range(n) if j != i and not (known and labels[j] == y)]
            noise = max(len(others), 1) / n
            p = np.exp(u @ bank.T / 0.07) / z
            value = np.log(p[i] / (p[i] + noise))
            value += sum(np.log(noise / (p[j] + noise)) for j in others)
            total -= value / len(s)
    return total


@given(st.integers(1, 6), st.integers(0, 9), st.booleans())
def test_crd(b: int, seed: int, known: bool) -> None:
    torch.manual_seed(seed)
    loss = made(other_classes=known).double().eval()
    batch = given_batch(b, seed)
    loss.labels_N[::2] = torch.arange(SAMPLES)[::2] % 3
    assert float(loss(*batch).detach()) == pytest.approx(expected(loss, batch, known), rel=1e-9)


def test_the_normalizer_is_kept_from_the_first_batch() -> None:
    loss = made().double()
    loss(*given_batch(4))
    kept = loss.student_log_z.clone(), loss.teacher_log_z.clone()
    loss(*given_batch(4, seed=5))
    assert torch.isfinite(torch.stack(kept)).all()
    assert (loss.student_log_z, loss.teacher_log_z) == kept


def test_memory_moves_by_momentum_stays_of_length_one_and_only_in_training() -> None:
    loss = made(momentum=0.75).double()
    before = loss.student_bank_ND.clone()
    s, t, index_B, labels_B = given_batch(4)
    loss.eval()(s, t, index_B, labels_B)
    assert torch.equal(loss.student_bank_ND, before)
    assert loss.student_log_z.isnan()
    loss.train()(s, t, index_B, labels_B)
    moved = 0.75 * before[index_B].numpy() + 0.25 * embedded(loss, "student", s)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(loss.student_bank_ND[index_B].numpy(), moved)
    rest = [i for i in range(SAMPLES) if i not in index_B.tolist()]
    assert torch.equal(loss.student_bank_ND[rest], before[rest])
    assert torch.equal(loss.labels_N[index_B], labels_B)
    assert (loss.labels_N[rest] == -1).all()


def test_backward_after_the_memory_moved() -> None:
    loss = made().double()
    s, t, index_B, labels_B = given_batch(4)
    s.requires_grad_()
    first = loss(s, t, index_B, labels_B)
    (first + loss(s, t, index_B, labels_B)).backward()
    assert s.grad.any()
    assert all(p.grad is not None for p in loss.parameters())


@given(st.integers(1, 9), st.integers(0, 9))
def test_negatives_are_other_samples(number: int, seed: int) -> None:
    torch.manual_seed(seed)
    loss = made(negatives=number)
    index_B = torch.randperm(SAMPLES)[:5]
    drawn_BK = loss._draw(index_B)
    assert drawn_BK.shape == (5, number)
    assert (drawn_BK != index_B[:, None]).all()
    assert 0 <= int(drawn_BK.min()) <= int(drawn_BK.max()) < SAMPLES


def test_all_others_where_no_more_exist() -> None:
    drawn_BK = made(negatives=10**6)._draw(torch.tensor([0, 4]))
    assert drawn_BK.tolist() == [
        [j for j in range(SAMPLES) if j != 0],
        [j for j in range(SAMPLES) if j != 4],
    ]


def test_a_negative_of_the_same_class_is_as_if_it_had_not_been_drawn() -> None:
    torch.manual_seed(0)
    loss, log_p_BP = made(), torch.randn(3, SAMPLES)
    counts_BK = torch.ones(3, SAMPLES - 1)
    counts_BK[:, 5:] = 0
    fewer = loss._contrast(log_p_BP[:, :6], torch.ones(3, 5))
    torch.testing.assert_close(loss._contrast(log_p_BP, counts_BK), fewer)
    assert float(loss._contrast(log_p_BP, torch.ones_like(counts_BK))) != float(fewer)


def test_a_batch_without_any_negative_is_finite() -> None:
    loss = made()
    loss.labels_N.fill_(1)
    s = torch.randn(4, 3, requires_grad=True)
    value = loss(s, torch.randn(4, 5), torch.arange(4), torch.ones(4, dtype=torch.long))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


def test_learning_pulls_pairs_together() -> None:
    torch.manual_seed(0)
    s = torch.randn(SAMPLES, 3)
    t = torch.randn(SAMPLES, 5)
    index_B = torch.arange(SAMPLES)
    loss = made()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(s, t, index_B, index_B)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_are_refused(samples: int) -> None:
    with pytest.raises(ConfigError, match=rf"samples: {samples} given"):
        made(samples)
