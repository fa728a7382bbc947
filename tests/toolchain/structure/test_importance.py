"""Scores against what they are defined to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError, StructureError
from toolchain.structure.importance import (
    importance,
    names,
    normalized,
    register,
    taylor_gradients,
)
from toolchain.structure.plan import Group, Slice


def channels(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple((channel,) for channel in range(count))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.fc(F.relu(self.norm(x + self.b(x))).mean((2, 3)))


STREAM = Group(
    "a",
    4,
    (
        Slice("a", "out", channels(4)),
        Slice("b", "out", channels(4)),
        Slice("norm", "out", channels(4)),
        Slice("b", "in", channels(4)),
        Slice("fc", "in", channels(4)),
    ),
)


def test_l1_and_l2_are_norms_of_rows_averaged_over_layers() -> None:
    network = Net()
    a, b = network.a.weight.double(), network.b.weight.double()
    l1 = torch.stack([(a[c].abs().sum() + b[c].abs().sum()) / 2 for c in range(4)])
    l2 = torch.stack([(a[c].norm() + b[c].norm()) / 2 for c in range(4)])
    torch.testing.assert_close(importance(STREAM, network, "l1"), l1)
    torch.testing.assert_close(importance(STREAM, network, "l2"), l2)


def test_several_rows_of_a_channel_count_together() -> None:
    network = nn.Sequential(nn.Linear(3, 6))
    group = Group("0", 3, (Slice("0", "out", ((0, 3), (1, 4), (2, 5))),))
    w_OI = network[0].weight.detach().double()
    expected = torch.stack([torch.cat([w_OI[c], w_OI[c + 3]]).norm() for c in range(3)])
    torch.testing.assert_close(importance(group, network, "l2"), expected)


def test_rows_of_a_transposed_convolution_are_on_its_second_axis() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 2))
    group = Group("0", 4, (Slice("0", "out", channels(4)),))
    expected = network[0].weight.detach().double().abs().sum((0, 2, 3))
    torch.testing.assert_close(importance(group, network, "l1"), expected)


def test_bn_scale_is_the_size_of_gamma() -> None:
    network = Net()
    nn.init.normal_(network.norm.weight)
    expected = network.norm.weight.detach().double().abs()
    assert torch.equal(importance(STREAM, network, "bn_scale"), expected)


def test_taylor_is_the_first_order_change_of_the_loss() -> None:
    torch.manual_seed(0)
    network = Net().double().eval()
    batches = [
        (torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])),
        (torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.tensor([1, 1])),
    ]
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    group = Group("b", 4, (Slice("b", "out", channels(4)),))
    scores = importance(group, network, "taylor", taylor_gradients(network, batches))
    step = 1e-6
    for channel in range(4):
        with torch.no_grad():
            before = F.cross_entropy(network(images), labels)
            row = network.b.weight[channel].clone()
            network.b.weight[channel] *= 1 - step
            after = F.cross_entropy(network(images), labels)
            network.b.weight[channel] = row
        assert scores[channel] == pytest.approx(abs(float(after - before)) / step, rel=1e-4)


def test_taylor_leaves_gradients_and_statistics_alone() -> None:
    network = Net().train()
    mean = network.norm.running_mean.clone()
    found = taylor_gradients(network, [(torch.randn(2, 3, 4, 4), torch.tensor([0, 1]))])
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(network.norm.running_mean, mean) and network.training


@pytest.mark.parametrize(
    ("kind", "message"), [("taylor", "needs gradients"), ("bn_scale", "no BatchNorm")]
)
def test_what_a_score_needs_is_told(kind: str, message: str) -> None:
    group = Group("a", 4, (Slice("a", "out", channels(4)),))
    with pytest.raises(StructureError, match=message):
        importance(group, Net(), kind)


def test_no_sample_is_told() -> None:
    with pytest.raises(StructureError, match="at least one batch"):
        taylor_gradients(Net(), [])


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tailor'.*'taylor'.*did you mean 'taylor'"):
        importance(STREAM, Net(), "tailor")
    assert names() == ("bn_scale", "l1", "l2", "taylor")


def test_a_name_has_one_owner() -> None:
    with pytest.raises(ValueError, match="twice"):
        register("l1")(lambda group, network, gradients: torch.ones(1))


def test_normalized_scores_have_mean_one() -> None:
    torch.testing.assert_close(normalized(torch.tensor([1.0, 3.0])), torch.tensor([0.5, 1.5]))
    assert normalized(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
