"""The dean: learns who helps, sees only what it may, leaves no trace, and repeats itself to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.dean.controller import DeanController, probe_interval
from toolchain.distillation.controllers.controller import CONTROLLERS, Controller
from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.objective import DistillationObjective
from toolchain.training.objective import Batch

Make = Callable[..., School]
OPTIONS: dict[str, Any] = {"probe_every": 4, "probe_size": 128, "lr": 5e-3}


class Training:
    """A plain loop: SGD with momentum on batches of the training part."""

    def __init__(self, school: School, controller: Controller, steps: int = 120) -> None:
        assert school.probe is not None
        self.school, self.controller, self.steps = school, controller, steps
        self.objective = DistillationObjective(school, controller)
        self.optimizer = torch.optim.SGD(school.network.parameters(), 0.05)
        self.draw = school.probe
        self.seen: list[dict[str, float]] = []

    def run(self, start: int, stop: int) -> None:
        self.school.network.train()
        for step in range(start, stop):
            torch.manual_seed(step)
            self.objective.begin_step(step, self.steps)
            self.optimizer.zero_grad()
            loss, _ = self.objective.loss(self.draw(1000 + step, 48))
            loss.backward()
            self.optimizer.step()
            self.seen.append({**self.objective.strengths, **self.objective.trail()})

    def weights(self) -> dict[str, torch.Tensor]:
        return copy.deepcopy(self.school.network.state_dict())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_it_lowers_the_strength_of_what_hurts_and_keeps_what_helps(make_school: Make) -> None:
    school = make_school()
    training = Training(school, DeanController(school, **OPTIONS))
    training.run(0, 120)
    last = training.seen[-1]
    assert last["bad"] < 0.25 and last["good"] > 0.75
    assert last["task"] == 1.0
    probed = [seen for seen in training.seen if "dean.agreement" in seen]
    assert len(probed) == 30
    assert all(seen["distillability.good"] > 0.3 > seen["distillability.bad"] for seen in probed)
    assert not any(seen["dean.fallback"] for seen in training.seen)


def test_at_first_every_strength_is_exactly_the_recipes(make_school: Make) -> None:
    school = make_school(strengths={"good": 0.3, "bad": 7.1})
    dean = DeanController(school, **OPTIONS, alpha_max=3.7)
    assert dean.strengths(0, 100, {}) == {TASK: 1.0, "good": pytest.approx(0.3, abs=0), "bad": 7.1}


def test_with_one_term_the_dean_still_decides(make_school: Make) -> None:
    for name, above in (("good", True), ("bad", False)):
        school = make_school(strengths={name: 0.5})
        training = Training(school, DeanController(school, **OPTIONS), 60)
        training.run(0, 60)
        assert (training.seen[-1][name] > 0.5) is above


def test_keep_sum_moves_strength_from_one_term_to_the_other(make_school: Make) -> None:
    school = make_school()
    training = Training(school, DeanController(school, **OPTIONS, keep_sum=True), 60)
    training.run(0, 60)
    last = training.seen[-1]
    assert last["good"] + last["bad"] == pytest.approx(1.0, abs=1e-6)
    assert last["good"] > 0.6


def test_a_dean_that_does_not_learn_trains_the_very_same_student(
    make_school: Make, make_student: Callable[..., nn.Sequential]
) -> None:
    """Probes leave no trace: weights, buffers, and random numbers (dropout) are the fixed run's."""
    found = []
    for controller in (lambda s: DeanController(s, **{**OPTIONS, "lr": 0.0}), FixedStrength):
        school = make_school(make_student(dropout=0.3))
        training = Training(school, controller(school))
        training.run(0, 30)
        found.append(training.weights())
    assert same(*found)


def test_a_run_that_is_resumed_in_the_middle_is_the_same_run(
    make_school: Make, tmp_path: Path
) -> None:
    whole = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    whole.run(0, 60)
    first = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    first.run(0, 33)
    state = {
        "network": first.school.network.state_dict(),
        "optimizer": first.optimizer.state_dict(),
        "objective": first.objective.state_dict(),
    }
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    second = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    school.network.load_state_dict(loaded["network"])
    second.optimizer.load_state_dict(loaded["optimizer"])
    second.objective.load_state_dict(loaded["objective"])
    second.run(33, 60)
    assert second.seen == whole.seen[33:]
    assert same(second.weights(), whole.weights())


def test_a_frozen_dean_replays_and_looks_at_nothing_held_out(
    make_school: Make, data: Any, tmp_path: Path
) -> None:
    teaching = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    teaching.run(0, 60)
    teaching.controller.keep(tmp_path)
    options = {**OPTIONS, "frozen": True, "load": str(tmp_path / "dean.safetensors")}
    runs = []
    data.asked["held out"].clear()
    for _ in range(2):
        school = make_school(held_out=None)
        runs.append(Training(school, DeanController(school, **options), 60))
        runs[-1].run(0, 60)
    assert data.asked["held out"] == []
    assert runs[0].seen == runs[1].seen
    assert same(runs[0].weights(), runs[1].weights())
    assert runs[0].seen[-1]["bad"] < 0.45
    weights = runs[0].controller.network.state_dict()
    assert same(weights, teaching.controller.network.state_dict())


def test_the_held_out_loss_is_of_samples_that_no_gradient_saw(make_school: Make, data: Any) -> None:
    school = make_school()
    Training(school, DeanController(school, **OPTIONS), 20).run(0, 20)
    fitted = set(torch.cat(data.asked["train"]).tolist())
    looked = set(torch.cat(data.asked["held out"]).tolist())
    assert looked and not fitted & looked


def test_the_teacher_gets_no_gradient_and_the_dean_none_from_the_student(make_school: Make) -> None:
    school = make_school()
    dean = DeanController(school, **{**OPTIONS, "probe_every": 100})
    training = Training(school, dean)
    training.run(0, 1)
    before = copy.deepcopy(dean.network.state_dict())
    training.run(1, 10)
    assert same(before, dean.network.state_dict())
    assert dean.updates == () and dean.parameters == ()


def contradicting(number: int, size: int) -> Batch:
    """Held-out samples whose two halves have the same images and labels drawn by lot."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size // 2, 8, 1, 1, generator=generator).repeat(2, 1, 1, 1)
    return Batch(images, torch.randint(4, (size,), generator=generator))


def test_a_signal_of_noise_falls_back_to_the_recipe_and_says_so_once(make_school: Make) -> None:
    lines: list[str] = []
    school = make_school(held_out=contradicting, say=lines.append)
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1, "probe_size": 8}, trust_probes=12)
    training = Training(school, dean, 60)
    training.run(0, 60)
    fallen = [seen["dean.fallback"] for seen in training.seen]
    start = fallen.index(1.0)
    assert start >= 12
    assert training.seen[start]["good"] == 0.5 and training.seen[start]["bad"] == 0.5
    assert len(lines) == 1 and "recipe's until they do" in lines[0] and "\n" not in lines[0]


class Babble:
    """A teacher that answers at random, another way at every probe."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(5)

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        answers = 4 * torch.randn(len(images_BCHW), 4, generator=self._generator)
        return dict.fromkeys(spots, answers)


def test_a_teacher_of_noise_is_noticed_though_both_halves_agree(make_school: Make) -> None:
    """Both halves are compared with the same gradients of the terms, and agree on whether they help."""
    lines: list[str] = []
    school = make_school(say=lines.append)
    babble = Babble()
    terms = [replace(term, teacher=babble) for term in school.terms]
    school = school.with_terms(terms, school.base)
    options = {**OPTIONS, "probe_every": 1, "probe_size": 128}
    dean = DeanController(school, **options, trust_probes=12)
    training = Training(school, dean, 60)
    training.run(0, 60)
    assert training.seen[-1]["dean.fallback"] == 1.0
    assert len(lines) == 1 and "probes that follow each other" in lines[0]
    assert "recipe's until they do" in lines[0] and "\n" not in lines[0]


class Done:
    """A sparsifier whose masks are fixed."""

    layers: tuple[str, ...] = ()
    strengths: dict[str, float] = {}


def test_a_dean_with_nothing_to_set_any_more_does_not_probe(
    make_school: Make, data: Any, tmp_path: Path
) -> None:
    """Its halves would agree on nothing for want of strengths, which is no noise."""
    lines: list[str] = []
    school = make_school(say=lines.append).with_terms((), {TASK: 1.0})
    school = replace(school, sparsifier=Done())  # type: ignore[arg-type]
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1}, trust_probes=2)
    data.asked["held out"].clear()
    training = Training(school, dean, 20)
    training.run(0, 20)
    assert not lines and data.asked["held out"] == []
    assert not any(seen["dean.fallback"] for seen in training.seen)
    dean.keep(tmp_path)
    assert not lines and not any("dean.moved" in seen for seen in training.seen)


def test_trust_can_be_switched_off(make_school: Make) -> None:
    lines: list[str] = []
    school = make_school(held_out=contradicting, say=lines.append)
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1, "probe_size": 8}, trust_probes=0)
    training = Training(school, dean, 40)
    training.run(0, 40)
    assert not lines and not any(seen["dean.fallback"] for seen in training.seen)


@pytest.mark.parametrize(
    ("steps", "options", "said"),
    [
        (
            30,
            {},
            ["dean: 8 probes, its test needs 20: the strengths were never judged; shorten probe_every or "
             "train longer"],
        ),
        (
            4,
            {},
            ["dean: 1 probe, its test needs 20: the strengths were never judged; the dean never moved a "
             "strength; shorten probe_every or train longer"],
        ),
        (
            4,
            {"trust_probes": 0},
            ["dean: 1 probe; the dean never moved a strength; shorten probe_every or train longer"],
        ),
        (30, {"trust_probes": 0}, []),
        (30, {"trust_probes": 8}, []),
        (30, {"trust_probes": 8, "keep_sum": True}, []),
    ],
)  # fmt: skip
def test_a_training_too_short_to_judge_the_dean_says_so(
    make_school: Make, tmp_path: Path, steps: int, options: dict[str, Any], said: list[str]
) -> None:
    lines: list[str] = []
    school = make_school(say=lines.append)
    training = Training(school, DeanController(school, **OPTIONS, **options), steps)
    training.run(0, steps)
    training.controller.keep(tmp_path)
    assert lines == said
    last = training.seen[-1]
    assert last["dean.moved"] == float(not any("never moved" in line for line in lines))
    tested = options.get("trust_probes", 20) > 0
    assert last.get("dean.judged") == (float(not said) if tested else None)
    assert training.seen[0]["dean.moved"] == 0.0


def test_what_a_resumed_dean_had_moved_is_known(make_school: Make) -> None:
    """Also from a checkpoint that was written before it was kept."""
    first = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    first.run(0, 9)
    state = first.controller.state_dict()
    assert state["moved"]
    del state["moved"]
    again = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    again.controller.load_state_dict(state)
    again.run(9, 10)
    assert again.seen[0]["dean.moved"] == 1.0


def test_the_trail_has_every_strength_and_at_a_probe_what_was_found(make_school: Make) -> None:
    training = Training(school := make_school(), DeanController(school, **OPTIONS), 10)
    training.run(0, 10)
    for step, seen in enumerate(training.seen):
        assert {"strength.task", "strength.good", "strength.bad", "dean.fallback"} <= set(seen)
        found = {"distillability.good", "dean.held_out_loss", "dean.agreement", "hypergradient.bad"}
        assert found <= set(seen) if step % 4 == 0 else not found & set(seen)
        assert all(type(value) is float for value in seen.values())


def test_probes_are_rare_enough(make_school: Make) -> None:
    """At batches of the usual size the work of probes is below a tenth of the steps' own."""
    few, many = make_school(strengths={"good": 1.0}), make_school()
    assert 1 < probe_interval(few, 128) < probe_interval(many, 128) < probe_interval(many, 256)
    terms = len(many.terms)
    probe = 1 + 2 + 2 * (1 + terms) + 3
    assert probe / (3 + 2) / probe_interval(many, 128) < 0.1
    assert DeanController(many, probe_size=128).probe_every == probe_interval(many, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 0.0}, "held_out: 0.0 given; accepted is greater than 0"),
        ({"held_out": 0.999}, "held_out: 0.999 given; accepted is less than or equal to 0.5"),
        ({"probe_every": 0}, "probe_every: 0 given; accepted is greater than or equal to 1"),
        ({"probe_size": 3}, "probe_size: 3 given"),
        ({"lr": -1.0}, "lr: -1.0"),
        ({"look_ahead": 0.0}, "look_ahead"),
        ({"alpha_max": 1.0}, "alpha_max: 1.0 given; accepted is greater than 1"),
        ({"beta_max": 0.5}, "beta_max"),
        ({"ema": 1.0}, "ema: 1.0"),
        ({"trust_probes": 1}, "trust_probes: 1"),
        ({"frozen": True}, "frozen: true without a dean to replay"),
        ({"load": "nowhere.safetensors"}, "'nowhere.safetensors' cannot be read"),
        ({"probe_size": 201}, "held_out: 200 samples for the dean; accepted are at least 201"),
    ],
)
def test_wrong_options_are_one_line(
    make_school: Make, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        CONTROLLERS.look_up("dean").make(make_school(), options)
    assert "\n" not in str(caught.value)


def test_a_school_without_what_a_dean_needs_is_refused(make_school: Make) -> None:
    for fields, message in (
        ({"held_out": None}, "no held-out samples"),
        ({"probe": None}, "no held-out samples"),
        ({"strengths": {"good": 1.0}, "terms": ()}, "none given for the controller dean"),
    ):
        school = make_school(**{k: v for k, v in fields.items() if k != "terms"})
        if "terms" in fields:
            school = school.with_terms((), {TASK: 1.0})
        with pytest.raises(ConfigError, match=message):
            DeanController(school)


def test_the_recipe_knows_it(make_school: Make) -> None:
    entry = CONTROLLERS.look_up("dean")
    assert entry.held_out and entry.options["held_out"] == 0.1
    assert "2022" in entry.source and "reconstruction" in entry.source
    assert isinstance(entry.make(make_school(), {"probe_every": 3}), DeanController)
    with pytest.raises(ConfigError, match="did you mean 'probe_every'"):
        entry.check({"probe_evry": 3})
