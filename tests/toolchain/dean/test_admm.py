"""ADMM: the prox is optimal, groups are whole and disjoint, and Z computes what a masked network does."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolchain.dean.admm import Admm, ChannelGroup, soft_threshold
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.quantization.attached import attach_views
from toolchain.structure.groups import find_groups
from toolchain.structure.masks import mask_channels
from toolchain.structure.plan import Group, Slice

SHAPE = (3, 8, 8)


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    net = trace(registry.build("cifar_resnet", depth=8, width=4))
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return net.double()


def groups_of(net: fx.GraphModule) -> list[Group]:
    found = find_groups(copy.deepcopy(net).float(), SHAPE, trial=False)
    return [group for group in found if group.reason is None]


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.floats(0.0, 4.0),
)
def test_the_soft_threshold_is_the_prox_of_the_group_lasso(values: list[float], t: float) -> None:
    """0 is in the subgradient of  t |z| + |z - v|^2 / 2  at z."""
    v = torch.tensor(values, dtype=torch.double)
    z = soft_threshold(v.norm()[None], t)[0] * v
    if z.norm() > 0:
        torch.testing.assert_close(t * z / z.norm() + z - v, torch.zeros(3).double())
    else:
        assert v.norm() <= t + 1e-12 or v.norm() == 0


def test_a_threshold_of_zero_changes_nothing_and_a_huge_one_leaves_nothing() -> None:
    norms_C = torch.tensor([0.0, 0.5, 2.0])
    assert soft_threshold(norms_C, 0.0).tolist() == [0.0, 1.0, 1.0]
    assert soft_threshold(norms_C, 9.0).tolist() == [0.0, 0.0, 0.0]


def test_groups_share_no_number_and_have_all_that_make_a_channel() -> None:
    net = network()
    groups = [ChannelGroup(group, net) for group in groups_of(net)]
    covered = {p: torch.zeros_like(p, dtype=torch.int) for p in net.parameters()}
    for group in groups:
        mask = {p: torch.zeros_like(p, dtype=torch.bool) for p in group.parameters}
        group.cover(mask)
        assert sum(int(m.sum()) for m in mask.values()) == group.size * group.channels
        for parameter, m in mask.items():
            covered[parameter] += m
    assert max(int(c.max()) for c in covered.values()) == 1
    stream = next(group for group in groups if group.name == "conv1")
    assert stream.parameters[0] is net.get_submodule("conv1").weight
    # The stem, and the second layer of the block that adds to its stream: rows, factors and shifts.
    assert stream.size == (3 * 9 + 2) + (4 * 9 + 2)


def test_norms_and_dots_against_a_loop() -> None:
    net = network()
    group = next(g for g in groups_of(net) if g.name == "layer1.0.conv1")
    mine = ChannelGroup(group, net)
    values = {p: torch.randn_like(p) for p in mine.parameters}
    norms_C = mine.norms(values)
    for channel in range(group.channels):
        pieces = []
        for part in group.slices:
            if part.axis == "out":
                module = net.get_submodule(part.module)
                for parameter in module.parameters(recurse=False):
                    pieces += [values[parameter][i].flatten() for i in part.index[channel]]
        assert norms_C[channel].item() == pytest.approx(torch.cat(pieces).norm().item())


def test_the_network_with_z_for_w_is_the_masked_network() -> None:
    """Also behind padded shortcuts and batch norms, whose shift would let a channel live on."""
    net = network()
    structure = groups_of(net)
    attach_views(net)
    groups = [ChannelGroup(group, net) for group in structure]
    admm = Admm(groups, rho=1.0)
    kept = {group.name: list(range(0, group.channels, 2)) for group in structure}
    factors = {}
    for group in structure:
        factors[group.name] = torch.zeros(group.channels)
        factors[group.name][kept[group.name]] = 1.0
    images = torch.randn(3, *SHAPE).double()
    sparse = copy.deepcopy(net).eval()
    z = admm.thresholded(factors)
    position = {p: n for n, p in enumerate(net.parameters())}
    theirs = list(sparse.parameters())
    with torch.no_grad():
        for parameter, value in z.items():
            theirs[position[parameter]].copy_(value)
        mask_channels(net, structure, kept)
        torch.testing.assert_close(sparse(images), net.eval()(images))


@pytest.mark.parametrize("eta", [0.0, 0.3, 20.0])
def test_an_approach_is_the_proximal_step_of_the_penalty(eta: float) -> None:
    """It minimizes |X - W|^2 / 2 eta + penalty(X): the gradient of that is zero there."""
    net = network()
    admm = Admm([ChannelGroup(group, net) for group in groups_of(net)], rho=0.3)
    admm.step({g.name: torch.full((g.channels,), 0.5) for g in admm.groups})
    before = {p: p.detach().clone() for p in admm.parameters}
    admm.approach(eta)
    pulled = admm.penalty_gradients()
    for parameter, was in before.items():
        torch.testing.assert_close(parameter.detach() - was, -eta * pulled[parameter])


@pytest.mark.parametrize("tau", [1.0, 0.2])
def test_what_was_just_cut_comes_back_no_stronger_than_the_dual_step_says(tau: float) -> None:
    net = network()
    admm = Admm([ChannelGroup(group, net) for group in groups_of(net)], rho=0.3, dual_step=tau)
    before = {g.name: g.norms(admm.v()) for g in admm.groups}
    kept = {g.name: (torch.arange(g.channels) % 2).double() for g in admm.groups}
    admm.step(kept)
    for group in admm.groups:
        expected_C = before[group.name] * (1 + tau * (1 - kept[group.name]))
        torch.testing.assert_close(group.norms(admm.v()), expected_C)


def test_the_penalty_and_its_gradient() -> None:
    net = network()
    admm = Admm([ChannelGroup(group, net) for group in groups_of(net)], rho=0.3)
    assert admm.penalty() == 0.0
    admm.step({g.name: torch.full((g.channels,), 0.5) for g in admm.groups})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    found = torch.autograd.grad(admm.penalty(), admm.parameters)
    cheap = admm.penalty_gradients()
    for parameter, gradient in zip(admm.parameters, found, strict=True):
        torch.testing.assert_close(cheap[parameter], gradient)
    assert float(admm.penalty().detach()) > 0


def test_what_lies_in_no_group_is_not_drawn() -> None:
    net = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    half = Group("1", 3, (Slice("1", "out", ((0,), (2,), (4,))),))
    admm = Admm([ChannelGroup(half, net)], rho=1.0)
    weight = net.get_submodule("1").weight
    before = weight.detach().clone()
    admm.step({"1": torch.zeros(3)})
    with torch.no_grad():
        weight.add_(1.0)
    pull = admm.penalty_gradients()[weight]
    assert (pull[[1, 3, 5]] == 0).all()
    torch.testing.assert_close(pull[[0, 2, 4]], 1.0 + 2 * before[[0, 2, 4]])


def test_it_solves_a_group_lasso() -> None:
    """min |W - T|^2 / 2 + sum_g t |W_g|: the solution is the prox of T, which ADMM has to find."""
    net = trace(nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 2, bias=False))).double()
    weight = net.get_submodule("0").weight
    torch.manual_seed(2)
    target = torch.randn_like(weight) * torch.tensor([0.1, 1.0, 0.3, 2.0])[:, None]
    group = ChannelGroup(Group("0", 4, (Slice("0", "out", ((0,), (1,), (2,), (3,))),)), net)
    admm = Admm([group], rho=1.0)
    t = 0.8
    for _ in range(200):
        for _ in range(10):
            with torch.no_grad():
                gradient = weight - target + admm.penalty_gradients()[weight]
                weight.sub_(0.4 * gradient)
        admm.step({"0": soft_threshold(group.norms(admm.v()), t / admm.rho)})
    expected = soft_threshold(target.norm(dim=1), t)[:, None] * target
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
    assert admm.residual() < 1e-5


def test_a_resumed_admm_is_the_same() -> None:
    net = network()
    groups = [ChannelGroup(group, net) for group in groups_of(net)]
    admm, again = Admm(groups, rho=1.0), Admm(groups, rho=1.0)
    admm.step({g.name: torch.linspace(0, 1, g.channels) for g in groups})
    again.load_state_dict(admm.state_dict())
    assert torch.equal(again.penalty(), admm.penalty())
    assert float(admm.penalty().detach()) > 0
