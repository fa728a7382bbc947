"""PQK: the ramp, the masks that follow it, and which loss moves which weight."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.lessons import School
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.terms import Term
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.pqk import (
    ChannelPruner,
    PruningObjective,
    TwoNetworks,
    WeightPruner,
    cubic_ramp,
)
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import (
    attach_teacher_norms,
    attach_views,
    latent_parameter,
)
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import QuantizerKind
from toolchain.structure.branches import find_branches
from toolchain.structure.groups import find_groups
from toolchain.structure.importance import importance
from toolchain.structure.masks import (
    attach_element_masks,
    hidden_share,
    kept_channels,
    mask_channels,
    mask_weights,
)
from toolchain.structure.plan import Branch, Group
from toolchain.training.objective import Batch, SupervisedObjective, Update
from toolchain.training.optimizers import quantizer_scales
from toolchain.training.precision import choose_precision

SHAPE = (3, 8, 8)


def plain_network() -> fx.GraphModule:
    torch.manual_seed(0)
    network = trace(registry.build("cifar_resnet", depth=14, width=4))
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return network


@cache
def structure() -> tuple[list[Group], list[Branch]]:
    network = plain_network()
    groups = [g for g in find_groups(network, SHAPE, trial=False) if g.reason is None]
    return groups, find_branches(network, SHAPE)


def batch(seed: int = 1, count: int = 8) -> Batch:
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *SHAPE, generator=random)
    return Batch(images, torch.randint(10, (count,), generator=random))


def pair(bits: int = 4, kind: QuantizerKind = "lsq", elements: bool = False) -> fx.GraphModule:
    """A network as phase 2 gets it: quantized, half masked, with the teacher's norms, training."""
    network = plain_network()
    attach_quantizers(network, Quantization(bits=bits, kind=kind))
    calibrate(network, [batch(7, 32).images_BCHW])
    if elements:
        attach_element_masks(network)
        mask_weights(network, 0.5)
    else:
        groups, _ = structure()
        mask_channels(network, groups, {g.name: range(0, g.channels, 2) for g in groups})
    attach_teacher_norms(network)
    return network.train()


def run(update: Update, lr: float = 0.05) -> None:
    """One step of an update as the training loop makes it, with a pull on everything it owns."""
    optimizer = torch.optim.SGD(update.parameters, lr=lr, momentum=0.9, weight_decay=0.01)
    for seed in (1, 2):
        loss, _ = update.loss(batch(seed))
        loss.backward(inputs=list(update.parameters))
        if update.guard is None:
            optimizer.step()
        else:
            with update.guard():
                optimizer.step()
        for parameter in update.parameters:
            parameter.grad = None


# -- the ramp


@given(
    start=st.integers(0, 50),
    length=st.integers(1, 50),
    initial=st.floats(0, 0.5),
    final=st.floats(0.5, 1),
)
def test_cubic_ramp(start: int, length: int, initial: float, final: float) -> None:
    end = start + length
    values = [cubic_ramp(step, start, end, initial, final) for step in range(end + 5)]
    assert values[start] == initial and values[0] == initial
    assert values[end] == final and values[-1] == final
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    middle = start + length // 2
    left = 1 - (middle - start) / length
    assert values[middle] == pytest.approx(final - (final - initial) * left**3)


def test_a_ramp_without_length_is_a_step() -> None:
    assert [cubic_ramp(step, 3, 3, 0.0, 0.8) for step in (2, 3, 4)] == [0.0, 0.8, 0.8]


# -- pruners


def channel_pruner(
    network: fx.GraphModule,
    removed: list[Branch],
    kept: dict[str, int],
    bypassed: Callable[[], frozenset[str]] = frozenset,
) -> ChannelPruner:
    groups, _ = structure()
    return ChannelPruner(
        network, groups, kept, removed, lambda group: importance(group, network, "l2"), bypassed
    )


def test_channels_at_both_ends_and_between() -> None:
    network = attach_views(plain_network())
    assert isinstance(network, fx.GraphModule)
    groups, branches = structure()
    removed = [branches[3]]
    inside = "layer2.1.conv1"
    kept = {g.name: max(1, g.channels // 3) for g in groups if g.name != inside}
    pruner = channel_pruner(network, removed, kept)
    assert pruner.channels(0.0) == {}
    widths = [{g.name: g.channels for g in groups}]
    for done in (0.1, 0.4, 0.8, 1.0):
        got = pruner.channels(done)
        widths.append({g.name: len(got.get(g.name, range(g.channels))) for g in groups})
    for more, less in itertools.pairwise(widths):
        assert all(less[name] <= more[name] for name in more)
    assert widths[-1] == {**kept, inside: 0}
    assert 0 < widths[2][inside] < 8
    plain = plain_network()
    for group in groups:
        if group.name != inside:
            best = importance(group, plain, "l2").topk(kept[group.name]).indices
            assert pruner.channels(1.0)[group.name] == tuple(sorted(best.tolist()))


def test_branches_go_at_the_end_only() -> None:
    network = attach_views(plain_network())
    assert isinstance(network, fx.GraphModule)
    groups, branches = structure()
    removed = branches[2:4]
    stream = next(g for g in groups if g.name == "layer2.0.conv2")
    asked: list[bool] = []

    def bypassed() -> frozenset[str]:
        asked.append(True)
        return frozenset()

    pruner = channel_pruner(network, removed, {stream.name: 4}, bypassed)
    last = network.get_submodule("layer2.0.bn2")
    pruner.apply(0.99)
    assert last.weight.any() and not asked
    pruner.apply(1.0)
    assert not last.weight.any() and not last.bias.any()
    assert len(kept_channels(network, groups, removed)[stream.name]) == 4
    assert asked == [True]
    pruner.apply(0.0)
    assert hidden_share(network) == 0.0


def test_masked_channels_are_ranked_by_their_latent_weights() -> None:
    """A hidden channel is not worth zero: it comes back when the others fall below it."""
    network = attach_views(plain_network())
    assert isinstance(network, fx.GraphModule)
    groups, _ = structure()
    group = next(g for g in groups if g.name == "layer1.0.conv1")
    pruner = channel_pruner(network, [], {group.name: 2})
    pruner.apply(1.0)
    first = pruner.channels(1.0)[group.name]
    latent = latent_parameter(network.get_submodule(group.name), "weight")
    with torch.no_grad():
        latent[list(first)] *= 1e-3
    second = pruner.channels(1.0)[group.name]
    assert set(first) | set(second) == set(range(4))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_weight_pruner(sparsity: float) -> None:
    network = plain_network()
    attach_views(network, elements=True)
    pruner = WeightPruner(network, sparsity)
    for done in (1.0, 0.0, 0.5, 1.0):
        pruner.apply(done)
        assert hidden_share(network) == pytest.approx(done * sparsity, abs=1e-3)


# -- phase 1


def test_phase_one_sets_masks_on_time_and_resumes() -> None:
    def make() -> tuple[fx.GraphModule, PruningObjective]:
        network = plain_network()
        attach_views(network, elements=True)
        base = SupervisedObjective(network)
        pruner = WeightPruner(network, 0.8)
        return network, PruningObjective(network, base, pruner, ramp=(0.2, 0.6), every=5, bits=4)

    network, objective = make()
    seen = []
    for step in range(50):
        objective.begin_step(step, 50)
        seen.append(objective.status()["sparsity"])
    assert objective.status()["bits"] == 4.0
    wanted = [0.0] * 50
    for step in range(50):
        at = step if step >= 30 else step - step % 5
        wanted[step] = 0.8 * cubic_ramp(at, 10, 30, 0.0, 1.0)
    assert seen == pytest.approx(wanted, abs=1e-3)
    before = copy.deepcopy(network.state_dict())
    objective.finish()
    assert all(torch.equal(tensor, before[k]) for k, tensor in network.state_dict().items())

    again, resumed = make()
    again.load_state_dict(network.state_dict())
    resumed.load_state_dict(objective.state_dict())
    assert resumed.status() == objective.status()
    assert resumed.updates is resumed.updates and resumed.updates[0].name == "task"


def test_a_ramp_that_does_not_end_is_finished() -> None:
    network = plain_network()
    attach_views(network, elements=True)
    pruner = WeightPruner(network, 0.5)
    objective = PruningObjective(
        network, SupervisedObjective(network), pruner, ramp=(0.0, 1.0), every=50
    )
    for step in range(8):
        objective.begin_step(step, 8)
    assert hidden_share(network) == 0.0
    objective.finish()
    assert hidden_share(network) == pytest.approx(0.5, abs=1e-3)


# -- phase 2


def parts(network: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that can learn, by side."""
    found = {}
    for name, parameter in network.named_parameters():
        found[name] = parameter.detach().clone()
    return found


def masks_of(network: nn.Module) -> dict[str, Tensor]:
    """The student's mask of each latent tensor, spread over it."""
    masks = {}
    for path, module in network.named_modules():
        for name, chain in getattr(module, "parametrizations", {}).items():
            mask = chain[0].mask()
            mask = mask.view(*mask.shape, *[1] * (chain.original.dim() - mask.dim()))
            key = f"{path}.parametrizations.{name}.original"
            masks[key] = mask.expand_as(chain.original).clone()
    return masks


def norms_of_student(network: nn.Module) -> set[str]:
    return {
        f"{path}.parametrizations.{name}.original"
        for path, module in network.named_modules()
        if isinstance(module, _BatchNorm) and ".teacher" not in path
        for name in ("weight", "bias")
    }


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("quantize_teacher", [False, True])
def test_the_teacher_moves_only_what_the_student_has_not(
    quantize_teacher: bool, elements: bool
) -> None:
    network = pair(elements=elements)
    pair_of = TwoNetworks(network, quantize_teacher=quantize_teacher)
    before, masks, norms = parts(network), masks_of(network), norms_of_student(network)
    run(pair_of.updates[0])
    moved = {"teacher": 0, "hidden": 0}
    for name, now in parts(network).items():
        if ".teacher." in name:
            moved["teacher"] += int((now != before[name]).sum())
        elif name in masks and name not in norms:
            mask = masks[name]
            assert torch.equal(now[mask], before[name][mask]), name
            moved["hidden"] += int((now[~mask] != before[name][~mask]).sum())
        else:
            assert torch.equal(now, before[name]), name
    assert moved["teacher"] > 50 and moved["hidden"] > 500


@pytest.mark.parametrize("teacher_updates", ["unimportant", "all"])
def test_the_student_moves_only_its_own(teacher_updates: str) -> None:
    network = pair()
    pair_of = TwoNetworks(network, teacher_updates=teacher_updates)  # type: ignore[arg-type]
    pair_of.begin_step(0, 1)
    teacher, student = pair_of.updates
    teacher.loss(batch())
    before, masks = parts(network), masks_of(network)
    run(student)
    moved = 0
    for name, now in parts(network).items():
        if ".teacher." in name:
            assert torch.equal(now, before[name]), name
        elif name in masks:
            mask = masks[name]
            assert torch.equal(now[~mask], before[name][~mask]), name
            moved += int((now[mask] != before[name][mask]).sum())
        elif "scale" in name:
            moved += int((now != before[name]).sum())
    assert moved > 500


def test_with_all_the_teacher_moves_every_weight() -> None:
    network = pair()
    teacher = TwoNetworks(network, teacher_updates="all").updates[0]
    assert teacher.guard is None
    before, masks, norms = parts(network), masks_of(network), norms_of_student(network)
    run(teacher)
    for name, now in parts(network).items():
        if name in masks and name not in norms:
            mask = masks[name]
            assert (now[mask] != before[name][mask]).any(), name
            assert mask.all() or (now[~mask] != before[name][~mask]).any(), name
        elif ".teacher." not in name:
            assert torch.equal(now, before[name]), name


def test_gradients_of_the_teacher_stop_at_important_weights() -> None:
    for updates, share in (("unimportant", False), ("all", True)):
        network = pair()
        pair_of = TwoNetworks(network, teacher_updates=updates)  # type: ignore[arg-type]
        loss, _ = pair_of.updates[0].loss(batch())
        latent = latent_parameter(network.get_submodule("layer2.0.conv1"), "weight")
        (grad,) = torch.autograd.grad(loss, [latent])
        mask = masks_of(network)["layer2.0.conv1.parametrizations.weight.original"]
        assert bool(grad[mask].any()) is share
        assert grad[~mask].any()


def test_owners_do_not_overlap_where_they_must_not() -> None:
    network = pair()
    teacher, student = TwoNetworks(network).updates
    everything = {id(p) for p in network.parameters()}
    assert {id(p) for p in [*teacher.parameters, *student.parameters]} == everything
    shared = {id(p) for p in teacher.parameters} & {id(p) for p in student.parameters}
    names = {name for name, p in network.named_parameters() if id(p) in shared}
    assert names == {
        name
        for name, _ in network.named_parameters()
        if name.endswith("original") and name not in norms_of_student(network)
    }
    scales = {id(p) for p in student.scales}
    assert scales == {
        id(p) for name, p in network.named_parameters() if name.endswith((".scale", ".scale_O"))
    }
    assert scales == {id(p) for p in quantizer_scales(network)}
    assert not scales & {id(p) for p in teacher.parameters}


class Named(nn.Module):
    """Names that must not decide anything."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.rescale = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.teacher(x) * self.rescale).mean((2, 3)))


def test_a_users_names_do_not_decide_who_owns_what() -> None:
    network = trace(Named())
    attach_views(network)
    attach_teacher_norms(network)
    teacher, student = TwoNetworks(network).updates
    conv = latent_parameter(network.get_submodule("teacher.0"), "weight")
    assert any(p is conv for p in student.parameters)
    assert any(p is network.rescale for p in student.parameters)
    assert not any(p is network.rescale for p in teacher.parameters)
    assert not student.scales


def test_losses_are_the_documented_ones() -> None:
    network = pair()
    further = Term("hint", lambda student, teacher: (student - teacher).square().mean(), Zeros())

    def learn(school: School, term: Term, strength: float, **options: Any) -> DistillationObjective:
        base = {"task": 1 - strength, term.name: strength, "hint": 2.0}
        school = school.with_terms((term, further), base)
        return DistillationObjective(school, FixedStrength(school), **options)

    pair_of = TwoNetworks(
        network,
        strength=0.7,
        temperature=3.0,
        mutual=0.2,
        school=School(network, label_smoothing=0.1),
        learn=learn,
    )
    network.eval()  # the same forward pass as often as we like
    x, labels, _ = both = batch()
    with torch.no_grad():
        z_s = network(x)
        with use_view(network, View.TEACHER):
            z_t = network(x)
    task = [F.cross_entropy(z, labels, label_smoothing=0.1) for z in (z_t, z_s)]
    pair_of.begin_step(0, 1)
    of_teacher, terms = pair_of.updates[0].loss(both)
    torch.testing.assert_close(of_teacher, task[0] + 0.2 * kl(z_t, z_s, temperature=3.0))
    assert set(terms) == {"task", "mutual"}
    of_student, terms = pair_of.updates[1].loss(both)
    drawn = kl(z_s, z_t, temperature=3.0)
    torch.testing.assert_close(of_student, 0.3 * task[1] + 0.7 * drawn + 2 * z_s.square().mean())
    assert {"task", "in_network_kl", "hint"} < set(terms)
    log_t, log_s = (z.div(3).log_softmax(1) for z in (z_t, z_s))
    by_hand = 9 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    torch.testing.assert_close(drawn, by_hand)


class Zeros:
    """A further teacher, who is silent."""

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        return {spot: torch.zeros(len(images_BCHW), 10) for spot in spots}


def test_a_lecture_is_of_this_batch_and_any_other_is_asked_for_anew() -> None:
    network, (x, labels, _) = pair(), batch()
    school = School(network, choose_precision("float32", "cpu"))
    pair_of = TwoNetworks(network, strength=1.0, school=school)
    pair_of.begin_step(0, 1)
    pair_of.updates[0].loss(Batch(x, labels))
    other = Batch(x.clone(), labels)
    (term,) = pair_of._student.school.terms
    network.train()
    given = term.teacher.observe(x, ["logits"])["logits"]
    anew = term.teacher.observe(other.images_BCHW, ["logits"])["logits"]
    with use_view(network.eval(), View.TEACHER), torch.no_grad():
        torch.testing.assert_close(anew, network(x))
    assert not torch.equal(given, anew)  # the update's pass used the batch's own statistics


@pytest.mark.parametrize("kind", ["lsq", "minmax"])
def test_auxiliary_passes_leave_no_trace_in_buffers(kind: QuantizerKind) -> None:
    """With the mutual term the teacher's update runs the student once more, for its logits only."""
    changed = {}
    for mutual in (0.0, 0.5):
        network = pair(kind=kind)
        pair_of = TwoNetworks(network, mutual=mutual)
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        loss, _ = pair_of.updates[0].loss(batch())
        loss.backward()
        after = dict(network.named_buffers())
        changed[mutual] = {n for n, b in after.items() if not torch.equal(b, before[n])}
        assert all(".teacher." in name for name in changed[mutual])
        assert any("running_mean" in name for name in changed[mutual])
    assert changed[0.0] == changed[0.5]


def test_the_students_pass_leaves_the_teachers_norms_alone() -> None:
    network = pair()
    pair_of = TwoNetworks(network)
    pair_of.begin_step(0, 1)
    both = batch()
    pair_of.updates[0].loss(both)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    pair_of.updates[1].loss(both)
    changed = {n for n, b in network.named_buffers() if not torch.equal(b, before[n])}
    assert "layer1.0.bn1.running_mean" in changed
    assert not any(".teacher." in name for name in changed)


def test_the_student_follows_the_teacher_as_it_is_after_its_step() -> None:
    """The student's term reads the logits of this step's teacher pass, without a gradient."""
    network = pair()
    pair_of = TwoNetworks(network, strength=1.0)
    pair_of.begin_step(0, 1)
    teacher, student = pair_of.updates
    both = batch()
    teacher.loss(both)
    loss, _ = student.loss(both)
    own = [p for name, p in network.named_parameters() if ".teacher." in name]
    assert all(g is None for g in torch.autograd.grad(loss, own, allow_unused=True))


def test_status_is_the_sparsity() -> None:
    network = pair()
    assert TwoNetworks(network).status() == {"sparsity": hidden_share(network)}
    assert 0.6 < hidden_share(network) < 0.8
