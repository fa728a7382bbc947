"""VID against a small NumPy computation of its equation, and between features of unequal shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import ConfigError
from toolchain.distillation.losses.variational import VariationalInformation


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 9), st.integers(0, 9)
)
def test_vid(b: int, c: int, d: int, variance: float, seed: int) -> None:
    torch.manual_seed(seed)
    s, t = (torch.randn(b, n, 3, 2, dtype=torch.float64) for n in (c, d))
    loss = VariationalInformation(s.shape, t.shape, variance).double()
    torch.nn.init.normal_(loss.rho_C)
    w = [m.weight.detach().numpy()[:, :, 0, 0] for m in loss.mean if hasattr(m, "weight")]
    mu = s.numpy()
    for i, weight in enumerate(w):
        mu = np.einsum("oi,bihw->bohw", weight, np.maximum(mu, 0) if i else mu)
    v = (np.log1p(np.exp(loss.rho_C.detach().numpy())) + 1e-5)[:, None, None]
    expected = (((mu - t.numpy()) ** 2 / v + np.log(v)) / 2).mean()
    assert loss(s, t).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 40.0])
def test_the_variance_starts_where_it_was_asked_to(variance: float) -> None:
    loss = VariationalInformation((2, 3), (2, 4), variance)
    found = torch.nn.functional.softplus(loss.rho_C) + 1e-5
    torch.testing.assert_close(found, torch.full((4,), variance), rtol=1e-4, atol=0)


def test_it_goes_down_when_the_teacher_can_be_told_from_the_student() -> None:
    torch.manual_seed(0)
    s = torch.randn(64, 3, 2, 2)
    t = torch.einsum("oi,bihw->bohw", torch.randn(4, 3), s)
    loss = VariationalInformation(s.shape, t.shape)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.03)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(s, t)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.3


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 4, 4), (2, 5, 8, 8)),
        ((2, 3, 8, 8), (2, 5, 4, 2)),
        ((2, 17, 6), (2, 5, 8, 8)),
        ((2, 3, 4, 4), (2, 16, 6)),
        ((2, 3, 4, 4), (2, 9)),
        ((2, 3), (2, 9)),
    ],
)
def test_shapes_that_it_joins(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    loss = VariationalInformation(student, teacher)
    s, t = torch.randn(student, requires_grad=True), torch.randn(teacher)
    loss(s, t).backward()
    assert s.grad.any()


def test_tokens_are_their_map_and_the_class_token_is_left_out() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    loss = VariationalInformation(s.shape, t.shape)
    tokens = torch.cat([torch.randn(2, 1, 3), s.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(loss(tokens, t), loss(s, t))


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vid.*\(7, 3\) given.*square grid"):
        VariationalInformation((2, 7, 3), (2, 5, 4, 4))
