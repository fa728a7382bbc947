"""What rounding alone may change: measured on the student, and no more than that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporters.proof.ladder import SAME_GRID
from exporters.proof.verify import Verification
from toolchain import checkpoint
from toolchain.graph import trace
from toolchain.proof.rounding import allowed_by_rounding, kept_in_float64


def check(rows: int, differing: int) -> Verification:
    return Verification(
        "file", "logits", rows, rows - differing, rows // 2, rows // 2, 0.1, None, SAME_GRID
    )


class Cancelling(nn.Module):
    """Class 1 where (x + 1e8) - 1e8 is above zero, which float32 cannot tell for small x."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        lost_B1 = ((x_BCHW + 1e8) - 1e8).flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(lost_B1), lost_B1], dim=1)


def test_decisions_that_float64_changes_are_counted() -> None:
    inputs = np.array([1e-3, 2e-3, 64.0, -64.0, -1e-3] * 2, np.float32).reshape(10, 1, 1, 1)
    labels = np.zeros(10, np.int64)
    batches = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    # In float32 1e-3 and 2e-3 vanish, so class 0 wins the tie; in float64 class 1 wins.
    told: list[int] = []
    assert kept_in_float64(trace(Cancelling()), batches, told.append) == pytest.approx(6 / 10)
    assert told == [4, 10]


def test_the_network_is_left_in_float32(case: Any) -> None:
    network, _ = checkpoint.load(case("vgg").student)
    inputs = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    before = network.eval()(torch.from_numpy(inputs)).detach()
    kept = kept_in_float64(network, [(inputs, np.zeros(32, np.int64))])
    assert 0.9 < kept <= 1
    assert torch.equal(network(torch.from_numpy(inputs)), before)
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("rows", "differing", "kept", "passes"),
    [
        (5000, 6, 1.0, False),  # nothing is rounded, so nothing is allowed beyond 0.1 %
        (5000, 6, 0.9994, True),  # 6 expected of both: 6 + 3 sqrt(6) = 13.3
        (5000, 14, 0.9994, True),
        (5000, 15, 0.9994, False),
        (256, 2, 0.9997, True),  # one is 0.1 % rounded up, two are what chance leaves of 0.15
        (256, 3, 0.9997, False),
        (16, 16, 0.0, True),  # a student that keeps nothing cannot be told from any file
    ],
)
def test_what_is_allowed(rows: int, differing: int, kept: float, passes: bool) -> None:
    given = check(rows, differing)
    assert not given
    assert bool(allowed_by_rounding(given, kept)) is passes


def test_nothing_is_asked_for_that_was_not_before() -> None:
    fine = check(10_000, 5)
    assert fine and allowed_by_rounding(fine, 1.0) is fine
