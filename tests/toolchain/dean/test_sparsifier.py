"""ADMM under a budget: starts at the recipe's widths, follows strengths, meets the goals both ways."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolchain.dean.admm import ChannelGroup
from toolchain.dean.budget import Budget
from toolchain.dean.hypergradients import keeping_size
from toolchain.dean.sparsifier import AdmmSparsifier
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.quantization.attached import attach_views
from toolchain.structure.allocation import allocate
from toolchain.structure.cost import CostModel, measure
from toolchain.structure.groups import find_groups
from toolchain.structure.importance import importance

SHAPE = (3, 8, 8)
GOAL = {"macs": 0.5}


def make(
    step: str = "projection", decided: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[fx.GraphModule, AdmmSparsifier]:
    torch.manual_seed(0)
    net = trace(registry.build("cifar_resnet", depth=8, width=8)).to(dtype)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    groups = [g for g in find_groups(net, SHAPE, trial=False) if g.reason is None]
    cost = CostModel(measure(net, SHAPE), groups)
    scores = {group.name: importance(group, net, "l2") for group in groups}
    widths = allocate(groups, [], scores, cost, kind="macs", goal=GOAL).widths
    whole = {group.name: group.channels for group in groups}
    attach_views(net)
    budget = Budget(cost, GOAL, whole, widths=widths if decided else None)
    channel_groups = [ChannelGroup(group, net) for group in groups]
    sparsifier = AdmmSparsifier(channel_groups, budget, widths, rho=0.5, step=step)  # type: ignore[arg-type]
    return net, sparsifier


def drawn(net: nn.Module, sparsifier: AdmmSparsifier, steps: int) -> None:
    """Some W-steps along the penalty alone."""
    for _ in range(steps):
        with torch.no_grad():
            for parameter, pull in sparsifier.pull().items():
                parameter.sub_(0.5 * pull)


def test_the_first_step_leaves_about_the_widths_that_were_decided() -> None:
    _, sparsifier = make()
    decided = make(decided=True)[1].budget.widths
    kept = sparsifier.z_step().widths
    assert decided is not None
    assert all(abs(kept[name] - decided[name]) <= 2 for name in kept)
    assert sparsifier.budget.unmet(kept) == []


def test_a_layer_with_twice_the_strength_keeps_fewer_channels_and_others_more() -> None:
    plain = make()[1].z_step().widths
    name = max(plain, key=lambda n: plain[n])
    _, sparsifier = make()
    sparsifier.set_strengths({name: 2.0})
    pressed = sparsifier.z_step().widths
    assert pressed[name] < plain[name]
    assert sum(pressed.values()) > sum(plain.values()) - plain[name] + pressed[name]


def test_inside_sparse_the_student_is_z_and_after_it_itself_to_the_bit() -> None:
    net, sparsifier = make()
    kept = sparsifier.z_step()
    before = copy.deepcopy(net.state_dict())
    with sparsifier.sparse():
        norms = {
            g.name: g.norms({p: p.detach() for p in g.parameters}) for g in sparsifier.admm.groups
        }
        for name, norms_C in norms.items():
            assert tuple(norms_C.nonzero()[:, 0].tolist()) == kept.channels[name]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_weights_follow_z() -> None:
    net, sparsifier = make()
    for _ in range(30):
        sparsifier.z_step()
        drawn(net, sparsifier, 5)
    assert sparsifier.admm.residual() < 0.05
    kept, met = sparsifier.fix()
    assert met and sparsifier.budget.unmet(kept.widths) == []
    assert sparsifier.layers == () and sparsifier.pull() == {} and sparsifier.strengths == {}


def test_the_multiplier_rises_until_the_goal_is_met() -> None:
    net, sparsifier = make("multiplier")
    sizes = []
    for _ in range(150):
        widths = sparsifier.z_step().widths
        sizes.append(sparsifier.budget.left("macs", widths))
        assert min(widths.values()) >= 1
        drawn(net, sparsifier, 3)
    assert sizes[0] > 0.9 > 0.55 > sizes[-1]
    kept, _ = sparsifier.fix()
    assert sparsifier.budget.unmet(kept.widths) == []


def test_a_multiplier_that_was_given_no_time_says_that_it_had_not_met_the_goal() -> None:
    _, sparsifier = make("multiplier")
    kept, met = sparsifier.fix()
    assert not met and sparsifier.budget.unmet(kept.widths) == []


def test_where_widths_are_decided_there_is_nothing_for_a_dean_to_set() -> None:
    _, sparsifier = make(decided=True)
    assert sparsifier.layers == ()
    assert sparsifier.z_step().widths == sparsifier.budget.widths


@pytest.mark.parametrize("step", ["projection", "multiplier"])
def test_hypergradients_are_finite_and_leave_the_size_alone(step: str) -> None:
    net, sparsifier = make(step)
    sparsifier.z_step()
    images = torch.randn(8, *SHAPE)
    net.eval()
    with sparsifier.sparse():
        parameters = [p for p in net.parameters() if p.requires_grad]
        loss = net(images).square().mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = {
        p: torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    }
    hyper = sparsifier.hypergradients(gradients)
    assert set(hyper) == set(sparsifier.layers)
    values = torch.tensor(list(hyper.values()))
    assert values.isfinite().all() and values.abs().max() > 0
    assert (
        values.min() < 0 < values.max()
    )  # at an unchanged size some layer gains what another loses


@pytest.mark.parametrize("step", ["multiplier", "projection"])
def test_hypergradients_are_exact_for_a_soft_z_step_and_a_surrogate_for_a_hard_one(
    step: str,
) -> None:
    """In float64, against differences of the held-out loss and of the size by each strength."""
    net, sparsifier = make(step, dtype=torch.float64)
    for _ in range(3):
        sparsifier.z_step()
        drawn(net, sparsifier, 2)
    images = torch.randn(8, *SHAPE, dtype=torch.float64)
    net.eval()
    parameters = [p for p in net.parameters() if p.requires_grad]

    def loss() -> Tensor:
        return net(images).square().mean()

    with sparsifier.sparse():
        found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    gradients = {
        p: torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    }
    hyper = sparsifier.hypergradients(gradients)

    def ahead(name: str, strength: float) -> Tensor:
        """The loss and the relaxed size that a Z-step with this strength would give now."""
        sparsifier.set_strengths({name: strength})
        if step == "projection":
            sparsifier._kept = None  # projected anew
        with torch.no_grad(), sparsifier.sparse():
            value = loss()
        factors, _ = sparsifier._present()
        size = sum(sparsifier._cost[group] * factors[group].sum() for group in factors)
        sparsifier.set_strengths({name: 1.0})
        return torch.stack([value, torch.as_tensor(size)])

    moves = torch.stack([(ahead(name, 1 + 1e-5) - ahead(name, 1 - 1e-5)) / 2e-5 for name in hyper])
    values = torch.tensor(list(hyper.values()), dtype=torch.float64)
    if step == "multiplier":
        expected = keeping_size(moves[:, 0], moves[:, 1])
        assert values.abs().max() > 1e-6
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)
    else:  # what is left does not change with a strength, so a derivative would say nothing
        assert not moves.any() and values.abs().max() > 1e-6


def test_a_resumed_sparsifier_goes_on_as_it_would_have() -> None:
    net, one = make("multiplier")
    other_net, other = make("multiplier")
    one.set_strengths({one.layers[0]: 1.4})
    one.z_step()
    drawn(net, one, 2)
    other_net.load_state_dict(net.state_dict())
    other.load_state_dict(one.state_dict())
    assert one.z_step() == other.z_step()
    assert torch.equal(one.admm.penalty(), other.admm.penalty())
