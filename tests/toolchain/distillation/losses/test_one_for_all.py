"""OFA's loss against a small NumPy computation of both its forms."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from toolchain.distillation.losses.one_for_all import ofa


def logits(b: int, c: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(b, c, generator=random, dtype=torch.float64) for _ in range(2))
    return s, t, torch.randint(c, (b,), generator=random)


@pytest.mark.parametrize("form", ["code", "paper"])
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.floats(0.5, 2),
    st.floats(0.5, 4),
    st.integers(0, 9),
)
def test_against_numpy(
    form: Literal["code", "paper"], b: int, c: int, gamma: float, temperature: float, seed: int
) -> None:
    s, t, labels_B = logits(b, c, seed)
    expected = 0.0
    for i in range(b):
        z_s, z_t, y = s[i].numpy() / temperature, t[i].numpy() / temperature, int(labels_B[i])
        q, p = np.exp(z_s) / np.exp(z_s).sum(), np.exp(z_t) / np.exp(z_t).sum()
        for k in range(c):
            if k == y:
                expected -= ((1 + p[k]) ** gamma - 1) * np.log(q[k]) / b
            else:
                expected -= (p[k] ** gamma if form == "code" else p[k]) * np.log(q[k]) / b
    found = ofa(s, t, labels_B, gamma, form, temperature)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_certain_teacher_leaves_a_learned_temperature_a_finite_gradient(
    form: Literal["code", "paper"],
) -> None:
    temperature = torch.tensor(1.0, requires_grad=True)
    sure = torch.tensor([[200.0, 0.0, 0.0]])  # in float32 the others' probability is 0
    ofa(torch.randn(1, 3), sure, torch.tensor([1]), 0.9, form, temperature).backward()
    assert temperature.grad is not None and torch.isfinite(temperature.grad)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_at_gamma_one_both_forms_are_soft_cross_entropy(b: int, c: int, seed: int) -> None:
    s, t, labels_B = logits(b, c, seed)
    for form in ("code", "paper"):
        found = ofa(s, t, labels_B, form=form)
        torch.testing.assert_close(found, F.cross_entropy(s, t.softmax(1)))


def test_gamma_strengthens_the_label_and_the_forms_differ() -> None:
    s, t, labels_B = logits(4, 5, 0)
    pulls = []
    for gamma in (1.0, 1.5):
        z = s.clone().requires_grad_()
        ofa(z, t, labels_B, gamma, "paper").backward()
        pulls.append(-z.grad.gather(1, labels_B[:, None]))
    assert (pulls[1] > pulls[0]).all()
    assert float(ofa(s, t, labels_B, 1.25, "paper")) > float(ofa(s, t, labels_B, 1.25, "code"))


def test_huge_logits_are_finite() -> None:
    s = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = ofa(s, torch.tensor([[-1e4, 1e4]]), torch.tensor([0]), 1.4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()
