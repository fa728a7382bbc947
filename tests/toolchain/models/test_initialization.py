"""The spread of freshly drawn weights."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from toolchain.models.initialization import he_normal, small_linear


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 8 * 9), ("fan_out", 32 * 9)])
def test_he_normal_spread(mode: Literal["fan_in", "fan_out"], fan: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32))
    nn.init.zeros_(network[1].weight)  # type: ignore[arg-type]
    he_normal(network, mode)
    weight = network[0].weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / fan), rel=0.05)
    assert not network[0].bias.any()
    assert (network[1].weight == 1).all() and not network[1].bias.any()


def test_small_linear_spread() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64))
    small_linear(network)
    assert float(network[0].weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not network[0].bias.any()
