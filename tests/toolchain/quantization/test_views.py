"""A view is a switch that is always put back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from toolchain.quantization.views import View, Viewed, use_view


class Probe(Viewed):
    def forward(self, x: Tensor) -> Tensor:
        return x * {View.STUDENT: 1, View.TEACHER: 2, View.LATENT: 3}[self.view]


@pytest.mark.parametrize(
    ("view", "factor"), [(View.STUDENT, 1), (View.TEACHER, 4), (View.LATENT, 9)]
)
def test_every_viewed_module_computes_as_asked(view: View, factor: int) -> None:
    network = nn.Sequential(Probe(), nn.Identity(), nn.Sequential(Probe()))
    with use_view(network, view) as inside:
        assert inside is network
        assert float(network(torch.ones(()))) == factor
    assert float(network(torch.ones(()))) == 1


def test_views_nest_and_come_back_in_order() -> None:
    probe = Probe()
    with use_view(probe, View.TEACHER):
        with use_view(probe, View.LATENT):
            assert probe.view is View.LATENT
        assert probe.view is View.TEACHER
    assert probe.view is View.STUDENT


def test_view_comes_back_after_an_error() -> None:
    probe = Probe()
    with pytest.raises(ZeroDivisionError), use_view(probe, View.LATENT):
        raise ZeroDivisionError
    assert probe.view is View.STUDENT


def test_parts_may_have_had_different_views() -> None:
    network = nn.Sequential(Probe(), Probe())
    with use_view(network[1], View.TEACHER):
        with use_view(network, View.LATENT):
            pass
        assert (network[0].view, network[1].view) == (View.STUDENT, View.TEACHER)


def test_view_is_not_state() -> None:
    probe = Probe()
    with use_view(probe, View.TEACHER):
        assert probe.state_dict() == {}
        assert copy.deepcopy(probe).view is View.TEACHER
    assert Probe.view is View.STUDENT


def test_network_without_views_is_left_alone() -> None:
    network = nn.Linear(2, 2)
    with use_view(network, View.TEACHER):
        assert "view" not in vars(network)
