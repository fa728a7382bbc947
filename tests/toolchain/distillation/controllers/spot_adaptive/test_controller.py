"""Spot-adaptive distillation as a whole: who learns from what, the ablation, resuming, a small training."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deploy.errors import ConfigError
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.controllers.spot_adaptive.controller import (
    SpotAdaptive,
    _of_one_family,
)
from toolchain.distillation.lessons import School
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.spots import LOGITS
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.graph import trace
from toolchain.models.cifar_resnet import cifar_resnet
from toolchain.models.mixer import mixer
from toolchain.models.vit import vit
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")
SPOTS = ("layer1", "layer2", "layer3")
BASE = {"task": 1.0, "kl": 0.5, **{f"at@{spot}": 10.0 for spot in SPOTS}}


def network(width: int, seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return trace(cifar_resnet(depth=8, classes=classes, width=width))


def batch(b: int = 8, seed: int = 0) -> Batch:
    """Images whose class is the channel that stands out."""
    noise = torch.Generator().manual_seed(seed)
    labels_B = torch.arange(b) % 3
    images_BCHW = torch.randn(b, 3, 8, 8, generator=noise)
    images_BCHW[torch.arange(b), labels_B] += 1.0
    return Batch(images_BCHW, labels_B)


def school(seed: int = 0, **given: Any) -> School:
    teacher = given.pop("teacher", None) or FrozenTeacher(network(6, 1), FLOAT)
    terms = [Term("kl", LOSSES.look_up("kl").bind(), teacher)]
    at = LOSSES.look_up("at").bind()
    terms += [Term(f"at@{spot}", at, teacher, spot, spot) for spot in SPOTS]
    return School(
        network(4, seed),
        FLOAT,
        terms=given.pop("terms", tuple(terms)),
        base=given.pop("base", BASE),
        probe=lambda number, size: batch(size, number),
        **given,
    )


def lesson_of(controller: SpotAdaptive, given: School, x: Batch) -> Any:
    controller.strengths(0, 10, {})
    given.convene(given.terms)
    return given.shared(x)


def agent_loss(controller: SpotAdaptive, x: Batch) -> Tensor:
    (update,) = controller.updates
    return update.loss(x)[0]


def test_the_agent_learns_and_gives_neither_network_a_gradient() -> None:
    given, x = school(), batch()
    controller = SpotAdaptive(given, homo=False)
    given.network.train()
    lesson_of(controller, given, x)
    agent_loss(controller, x).backward()
    (update,) = controller.updates
    assert update.name == "agent" and update.lr_factor == 0.5
    assert update.weight_decay == 1e-3 and update.decays_all
    assert all(p.grad is not None for p in update.parameters)
    assert any((p.grad != 0).any() for p in controller._agent.policy.parameters())
    teacher = given.terms[0].teacher.network
    assert all(p.grad is None for p in [*given.network.parameters(), *teacher.parameters()])


def test_the_students_loss_gives_the_agent_no_gradient() -> None:
    given, x = school(), batch()
    objective = DistillationObjective(given, SpotAdaptive(given, homo=False))
    given.network.train()
    objective.begin_step(0, 10)
    agent, student = objective.updates
    agent.loss(x)
    student.loss(x)[0].backward()
    assert all(p.grad is None for p in agent.parameters)
    assert all(p.grad is not None for p in given.network.parameters())
    assert {id(p) for p in agent.parameters}.isdisjoint(id(p) for p in student.parameters)


def test_routing_moves_no_buffer_and_each_network_runs_once_for_both_updates() -> None:
    given, x = school(), batch()
    controller = SpotAdaptive(given)
    objective = DistillationObjective(given, controller)
    given.network.train()
    plain = copy.deepcopy(given.network)
    plain(x.images_BCHW)
    objective.begin_step(0, 10)
    for update in objective.updates:
        update.loss(x)
    after = dict(given.network.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in plain.named_buffers())
    assert given.network.training


def test_a_term_sees_the_samples_that_were_sent_the_teachers_way() -> None:
    given, x = school(), batch(32)
    controller = SpotAdaptive(given, homo=False)
    lesson = lesson_of(controller, given, x)
    agent_loss(controller, x)
    samples = controller.guide(lesson).samples
    assert set(samples) == {"kl", *(f"at@{spot}" for spot in SPOTS)}
    assert all(s.dtype == torch.bool and s.shape == (32,) for s in samples.values())
    assert not samples["kl"].requires_grad
    trail = controller.trail()
    assert set(trail) == {"policy_loss", *(f"distilled.{spot}" for spot in (*SPOTS, LOGITS))}
    assert float(trail["distilled.layer2"]) == samples["at@layer2"].float().mean().item()
    assert 0 < float(trail["distilled.layer2"]) < 1


def test_one_lesson_has_one_decision_and_the_next_has_its_own() -> None:
    given, x = school(), batch(32)
    controller = SpotAdaptive(given, homo=False)
    lesson = lesson_of(controller, given, x)
    agent_loss(controller, x)
    first, again = controller.guide(lesson).samples["kl"], controller.guide(lesson).samples["kl"]
    other = controller.guide(lesson_of(controller, given, batch(32))).samples["kl"]
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_guidance_needs_no_update_before_it() -> None:
    given = school()
    controller = SpotAdaptive(given, homo=False)
    lesson = given.lesson(batch(32))
    samples = controller.guide(lesson).samples["kl"]
    assert samples.any() and not samples.all()
    assert lesson.task().requires_grad  # the student's pass was made with its graph


def share_at_first(student: nn.Module | None = None, **options: Any) -> float:
    given = school()
    if student is not None:
        spots = zip(given.terms, (LOGITS, "blocks.0", "blocks.1", "blocks.2"), strict=True)
        sp = LOSSES.look_up("sp").bind()
        terms = tuple(replace(term, student_spot=spot, loss=sp) for term, spot in spots)
        given = replace(given, network=student, terms=terms)
    controller = SpotAdaptive(given, **options)
    samples = controller.guide(given.lesson(batch(64))).samples
    return torch.stack(list(samples.values())).float().mean().item()


def test_networks_of_one_family_start_by_distilling_everywhere() -> None:
    assert share_at_first() > 0.99  # both are residual networks
    assert share_at_first(homo=False) < 0.8
    transformer = trace(vit(image_size=8, patch=2, width=16, depth=3, heads=2, classes=3))
    assert share_at_first(transformer) < 0.8
    assert share_at_first(transformer, homo=True) > 0.99


def test_a_family_is_known_by_its_layers() -> None:
    sizes: dict[str, Any] = {"image_size": 8, "patch": 2, "width": 16, "depth": 3, "classes": 3}
    transformer, mixing = trace(vit(**sizes, heads=2)), trace(mixer(**sizes))
    residual, smaller = (trace(cifar_resnet(depth=depth, width=4)) for depth in (20, 8))
    del smaller.layer1.get_submodule("0").conv2  # a branch that was cut out
    assert _of_one_family(residual, smaller)
    quantized = trace(cifar_resnet(depth=8, width=4))
    parametrize.register_parametrization(quantized.conv1, "weight", nn.Identity())
    assert _of_one_family(residual, quantized)
    assert _of_one_family(transformer, trace(vit(**{**sizes, "depth": 2}, heads=2)))
    # Both have patches, blocks, norm and classifier.
    assert not _of_one_family(transformer, mixing) and not _of_one_family(mixing, transformer)
    assert not _of_one_family(residual, transformer)


def test_without_a_linear_layer_the_policy_looks_at_the_last_spot() -> None:
    def convolutional(channels: int) -> nn.Module:
        convolutions = nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 3, 3)
        return trace(nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()))

    teacher = FrozenTeacher(convolutional(5), FLOAT)
    at = Term("at", LOSSES.look_up("at").bind(), teacher, "1", "1")
    given = replace(school(terms=(at,), base={"task": 1.0, "at": 1.0}), network=convolutional(4))
    controller = SpotAdaptive(given)
    lesson_of(controller, given, batch())
    assert torch.isfinite(agent_loss(controller, batch()))
    assert controller._agent.policy.linear.in_features == 9


def test_anti_is_the_policy_turned_round() -> None:
    x = batch(32)
    decided = {}
    for decisions in ("policy", "anti"):
        given = school()
        controller = SpotAdaptive(given, decisions=decisions, homo=False)  # type: ignore[arg-type]
        lesson = lesson_of(controller, given, x)
        agent_loss(controller, x)
        decided[decisions] = controller.guide(lesson).samples
    assert all(torch.equal(~decided["anti"][k], v) for k, v in decided["policy"].items())


def test_coins_are_fair_and_always_is_always() -> None:
    given = school()
    lesson = given.lesson(batch(200))
    coins = SpotAdaptive(given, decisions="random")
    assert coins.updates == ()
    thrown = torch.stack(list(coins.guide(lesson).samples.values())).float()
    assert 0.4 < thrown.mean() < 0.6 and not torch.equal(thrown[0], thrown[1])
    always = SpotAdaptive(given, decisions="always")
    assert always.updates == ()
    assert torch.stack(list(always.guide(lesson).samples.values())).all()
    assert float(always.trail()["distilled.layer1"]) == 1.0


def test_the_loss_is_the_weighted_routed_one_plus_the_hinge() -> None:
    given, x = school(label_smoothing=0.1), batch()
    controller = SpotAdaptive(given, homo=False, gamma=3.0)
    lesson = lesson_of(controller, given, x)
    (update,) = controller.updates
    loss, terms = update.loss(x)
    sent = controller.guide(lesson).samples["kl"].sum().item()
    routed = float(terms["routed"])
    weight = 3.0 if routed > lesson.task().item() else 1 / 3.0
    assert loss.item() == pytest.approx(weight * routed + max(0.0, 4 - sent), rel=1e-5)


def test_the_hinge_sends_half_of_the_batch_the_teachers_way() -> None:
    given, x = school(), batch(16)
    controller = SpotAdaptive(given, homo=False)
    policy = controller._agent.policy
    with torch.no_grad():
        policy.linear.bias.view(-1, 2)[-1] = torch.tensor([-30.0, 30.0])
    lesson = lesson_of(controller, given, x)
    loss, terms = controller.updates[0].loss(x)
    assert not controller.guide(lesson).samples["kl"].any()
    weight = 2.0 if terms["routed"] > lesson.task() else 0.5
    assert loss.item() - 8.0 == pytest.approx(weight * float(terms["routed"]), rel=1e-4)
    loss.backward()
    assert policy.linear.bias.grad.view(-1, 2)[-1, 0] < 0  # downhill is towards the teacher


def test_gamma_follows_the_losses() -> None:
    given = school()
    assert SpotAdaptive(given)._agent._gamma == 2.0
    kl = LOSSES.look_up("kl").bind()
    sp = Term("sp@layer3", LOSSES.look_up("sp").bind(), given.terms[0].teacher, "layer3", "layer3")
    other = school(terms=(Term("kl", kl, given.terms[0].teacher), sp), base={"task": 1.0})
    assert SpotAdaptive(other)._agent._gamma == 1.0


def test_tau_falls_as_the_run_goes_on() -> None:
    controller = SpotAdaptive(school(), tau=4.0, tau_end=1.0)
    taus = []
    for step in (0, 5, 10):
        controller.strengths(step, 11, {})
        taus.append(controller._tau)
    assert taus == pytest.approx([4.0, 2.0, 1.0])


def test_a_term_that_sleeps_leaves_the_route_open() -> None:
    given, x = school(base={**BASE, "at@layer1": 0.0, "kl": 0.0}), batch()
    objective = DistillationObjective(given, SpotAdaptive(given))
    objective.begin_step(0, 10)
    agent, student = objective.updates
    agent.loss(x)
    terms = student.loss(x)[1]
    assert "at@layer2" in terms and "at@layer1" not in terms and "kl" not in terms


def train(objective: DistillationObjective, start: int, end: int, total: int) -> list[Any]:
    """What a training loop does; momentum starts anew with each call."""
    objective.school.network.train()
    optimizers = [
        torch.optim.SGD(list(update.parameters), lr=0.05 * update.lr_factor)
        for update in objective.updates
    ]
    trail = []
    for step in range(start, end):
        x = batch(16, step)
        objective.begin_step(step, total)
        for update, optimizer in zip(objective.updates, optimizers, strict=True):
            loss, _ = update.loss(x)
            assert torch.isfinite(loss)
            loss.backward(inputs=list(update.parameters))
            optimizer.step()
            optimizer.zero_grad()
        trail.append({k: float(v) for k, v in objective.trail().items()})
    return trail


@pytest.mark.parametrize("decisions", ["policy", "anti", "random"])
def test_a_resumed_run_is_the_same_run(decisions: str) -> None:
    teacher = FrozenTeacher(network(6, 1), FLOAT)

    def objective() -> DistillationObjective:
        given = school(teacher=teacher)
        options: dict[str, Any] = {"decisions": decisions, "homo": False, "tau_end": 1.0}
        return DistillationObjective(given, SpotAdaptive(given, **options))

    whole, first, second = objective(), objective(), objective()
    trail = train(whole, 0, 6, 6)
    train(first, 0, 3, 6)
    torch.manual_seed(99)  # nobody draws from the process's generator
    second.school.network.load_state_dict(first.school.network.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert train(second, 3, 6, 6) == trail[3:]
    ends = [o.school.network.state_dict().values() for o in (whole, second)]
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_small_training_works_and_the_agent_finds_the_teacher() -> None:
    plain = network(6, 1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for step in range(40):
        x = batch(16, 1000 + step)
        nn.functional.cross_entropy(plain(x.images_BCHW), x.labels_B).backward()
        optimizer.step()
        optimizer.zero_grad()
    teacher = FrozenTeacher(plain, FLOAT)
    given = school(teacher=teacher, base={**BASE, **{f"at@{spot}": 1.0 for spot in SPOTS}})
    trail = train(DistillationObjective(given, SpotAdaptive(given, homo=False)), 0, 40, 40)
    fresh = batch(90, 5000)
    with torch.no_grad():
        right = given.network.eval()(fresh.images_BCHW).argmax(1) == fresh.labels_B
    assert right.float().mean() > 0.8
    late = [step["policy_loss"] for step in trail[-5:]]
    assert sum(late) < sum(step["policy_loss"] for step in trail[:5])


def test_nothing_of_the_agent_is_in_the_student() -> None:
    given = school()
    keys = list(given.network.state_dict())
    SpotAdaptive(given)
    assert list(given.network.state_dict()) == keys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decisions": "polcy"},
            "'polcy' given; accepted is 'policy', 'anti', 'random' or 'always'",
        ),
        ({"gamma": 0.5}, "gamma: 0.5 given"),
        ({"tau": 0.0}, "tau: 0.0 given; accepted is greater than 0"),
        ({"tau_end": -1.0}, "tau_end: -1.0"),
        ({"gamma": float("nan")}, "gamma: nan"),
        ({"homo": "maybe"}, "homo: 'maybe' given; accepted is a valid boolean"),
    ],
)
def test_options_outside_their_range_are_refused_in_one_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        CONTROLLERS.look_up("spot-adaptive").make(school(), options)
    assert "\n" not in str(error.value)


def test_a_spot_that_something_goes_round_is_refused() -> None:
    teacher = FrozenTeacher(network(6, 1), FLOAT)
    at = Term("at", LOSSES.look_up("at").bind(), teacher, "layer1.0.bn1", "layer1.0.bn1")
    with pytest.raises(ConfigError, match="goes round") as error:
        SpotAdaptive(school(teacher=teacher, terms=(at,), base={"task": 1.0, "at": 1.0}))
    assert "\n" not in str(error.value)


def test_it_is_found_by_name_with_its_source() -> None:
    entry = CONTROLLERS.look_up("spot-adaptive")
    assert "2205.02399" in entry.source and not entry.held_out
    assert set(entry.options) == {"decisions", "gamma", "homo", "tau", "tau_end"}
    assert isinstance(entry.make(school(), {"decisions": "random"}), SpotAdaptive)
