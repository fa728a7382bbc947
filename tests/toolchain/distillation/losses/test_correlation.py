"""CC against a small NumPy computation of its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import ConfigError
from toolchain.distillation.losses.correlation import CorrelationCongruence
from toolchain.distillation.losses.entry import LOSSES


@given(st.integers(2, 6), st.integers(0, 9))
def test_cc(b: int, seed: int) -> None:
    torch.manual_seed(seed)
    s, t = torch.randn(b, 3, 2, 2, dtype=torch.float64), torch.randn(b, 4, 5, dtype=torch.float64)
    loss = CorrelationCongruence(s.shape, t.shape, dimensions=7).double()
    state = {name: value.numpy() for name, value in loss.state_dict().items()}
    e_s = s.numpy().mean((2, 3)) @ state["student.linear.weight"].T + state["student.linear.bias"]
    e_t = t.numpy().mean(1) @ state["teacher.linear.weight"].T + state["teacher.linear.bias"]
    apart = np.abs(e_s - e_t)
    expected = np.mean([(apart[i] * apart[i + 1]).sum() for i in range(b - 1)])
    assert loss(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_it_depends_on_the_order_of_the_batch() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(4, 3), torch.randn(4, 5)
    loss = CorrelationCongruence(s.shape, t.shape)
    assert loss(s, t).item() == pytest.approx(loss(s.flip(0), t.flip(0)).item())
    order = torch.tensor([1, 0, 2, 3])
    assert loss(s, t).item() != pytest.approx(loss(s[order], t[order]).item(), rel=1e-3)


def test_both_embeddings_learn() -> None:
    loss = CorrelationCongruence((4, 3), (4, 5))
    loss(torch.randn(4, 3), torch.randn(4, 5)).backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize("loss", ["cc", "crd"])
def test_a_feature_of_more_axes_is_refused_in_one_line(loss: str) -> None:
    entry = LOSSES.look_up(loss)
    made = entry.bind(**({"samples": 8} if loss == "crd" else {}))
    with pytest.raises(ConfigError, match=r"features \(5, 2, 5, 8\) given; accepted are") as error:
        made((2, 4), (2, 5, 2, 5, 8))
    assert "\n" not in str(error.value)
