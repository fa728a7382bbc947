"""What sparsity costs: against a network whose channels were set to zero by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from toolchain.analysis.sparsities import damages
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.structure.groups import find_groups
from toolchain.structure.importance import importance
from toolchain.structure.plan import Group
from toolchain.training.precision import choose_precision

CPU = choose_precision("float32", "cpu")


@pytest.fixture(scope="module")
def network() -> fx.GraphModule:
    torch.manual_seed(0)
    made = registry.build("cifar_resnet", depth=8, in_channels=1, width=4, classes=4)
    return trace(made).eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 4) for n in (5, 7)]


def losses(network: fx.GraphModule, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits_NC = torch.cat([network(images_BCHW) for images_BCHW, _ in batches])
    labels_N = torch.cat([labels_B for _, labels_B in batches])
    right_N = logits_NC.argmax(1) == labels_N
    return F.cross_entropy(logits_NC, labels_N, reduction="none"), right_N


def test_the_cost_is_that_of_the_least_important_channels(
    network: fx.GraphModule, batches: list[tuple[Tensor, Tensor]]
) -> None:
    before = copy.deepcopy(network.state_dict())
    groups = find_groups(network, (1, 8, 8))

    def score(group: Group) -> Tensor:
        return importance(group, network, "l2")

    found = damages(network, groups, score, (0.0, 0.5), batches, CPU)
    assert [each.group for each in found[::2]] == [g.name for g in groups if g.reason is None]
    inner = next(each for each in found if each.group == "layer1.0.conv1" and each.sparsity == 0.5)
    assert (inner.channels, inner.removed) == (4, 2)
    by_hand = copy.deepcopy(network)
    weight = by_hand.get_submodule("layer1.0.conv2").weight  # who reads the channels
    assert isinstance(weight, Tensor)
    gone = network.get_submodule("layer1.0.conv1").weight.flatten(1).norm(dim=1).argsort()[:2]  # type: ignore[union-attr, operator]
    with torch.no_grad():
        weight[:, gone] = 0
    (was_N, right_N), (is_N, hit_N) = losses(network, batches), losses(by_hand, batches)
    rise = (is_N - was_N).double().numpy()
    assert inner.loss == pytest.approx(rise.mean(), abs=1e-5)
    half = 1.959964 * rise.std(ddof=1) / np.sqrt(12)
    assert inner.loss_interval == pytest.approx((rise.mean() - half, rise.mean() + half), abs=1e-5)
    assert inner.top1 == pytest.approx(100 * float((hit_N.double() - right_N.double()).mean()))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_no_sparsity_costs_nothing_and_one_channel_always_stays(
    network: fx.GraphModule, batches: list[tuple[Tensor, Tensor]]
) -> None:
    groups = find_groups(network, (1, 8, 8))
    seen: list[tuple[int, int]] = []

    def score(group: Group) -> Tensor:
        return importance(group, network, "l1")

    found = damages(
        network, groups, score, (0.0, 1.0), batches, CPU, lambda done, of: seen.append((done, of))
    )
    for none, all_ in zip(found[::2], found[1::2], strict=True):
        assert (none.removed, none.loss, none.top1) == (0, 0.0, 0.0)
        assert all_.removed == all_.channels - 1
    assert seen == [(n, len(found) // 2) for n in range(1, len(found) // 2 + 1)]
