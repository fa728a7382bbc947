"""The dean: learns who helps, sees only what it may, leaves no trace, and repeats itself to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
    probed = [seen for seen in training.seen if "dean.held_out_loss" in seen]
    assert len(probed) == 30
    assert all(seen["distillability.good"] > 0.3 > seen["distillability.bad"] for seen in probed)
    assert probed[-1]["dean.fallback"] == 0.0
    assert probed[-1]["t.good"] < -2 and probed[-1]["t.bad"] > 2


def test_until_there_is_evidence_every_strength_is_the_recipes(make_school: Make) -> None:
    school = make_school()
    training = Training(school, DeanController(school, **OPTIONS, trust_probes=9))
    training.run(0, 120)
    judged = [seen["dean.judged"] for seen in training.seen].index(1.0)
    assert judged == 8 * OPTIONS["probe_every"]
    moved = [seen["good"] != 0.5 or seen["bad"] != 0.5 for seen in training.seen].index(True)
    assert moved > judged
    assert all(seen["dean.fallback"] == 1.0 for seen in training.seen[:judged])


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


class Babble:
    """A teacher that answers at random, another way at every probe."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(1)

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        answers = 4 * torch.randn(len(images_BCHW), 4, generator=self._generator)
        return dict.fromkeys(spots, answers)


def nudge(student_BC: Tensor, target_BC: Tensor) -> Tensor:
    """A pull along the targets, so weak that the curvature along it, which always hurts, is nothing."""
    return 1e-3 * (student_BC * target_BC).mean()


def beside_noise(school: School) -> School:
    """``bad`` pulls at random."""
    terms = [
        replace(term, loss=nudge, teacher=Babble()) if term.name == "bad" else term
        for term in school.terms
    ]
    return school.with_terms(terms, school.base)


def test_a_signal_of_noise_moves_nothing_and_says_so_once(
    make_school: Make, tmp_path: Path
) -> None:
    lines: list[str] = []
    school = beside_noise(make_school(strengths={"bad": 0.5}, say=lines.append))
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1}, trust_probes=12)
    training = Training(school, dean, 60)
    training.run(0, 60)
    dean.keep(tmp_path)
    assert len(lines) == 1 and "recipe's until they do" in lines[0] and "\n" not in lines[0]
    assert "24 probes" in lines[0] and "of bad" in lines[0]
    assert all(seen["dean.fallback"] == 1.0 and seen["bad"] == 0.5 for seen in training.seen)
    assert training.seen[-1]["dean.judged"] == 1.0 and training.seen[-1]["dean.moved"] == 0.0


def test_noise_stays_at_the_recipes_strength_beside_a_teacher_that_is_right(
    make_school: Make, tmp_path: Path
) -> None:
    """Each strength is judged by itself: what is known of ``good`` earns no trust for ``bad``."""
    lines: list[str] = []
    school = beside_noise(make_school(say=lines.append))
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1}, trust_probes=12)
    training = Training(school, dean, 60)
    training.run(0, 60)
    last = training.seen[-1]
    assert last["good"] > 0.6 and last["bad"] == 0.5
    assert last["dean.fallback"] == 0.5 and not lines
    # Frozen, it leaves alone what it had no evidence of.
    dean.keep(tmp_path)
    options = {**OPTIONS, "frozen": True, "load": str(tmp_path / "dean.safetensors")}
    again = DeanController(make_school(), **options)
    strengths = again.strengths(0, 60, {})
    assert strengths["bad"] == 0.5 and strengths["good"] != 0.5
    assert again.trail()["dean.fallback"] == 0.5


def test_strengths_of_zero_are_nothing_to_set(make_school: Make) -> None:
    school = make_school(strengths={"good": 0.0})
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1}, trust_probes=2)
    training = Training(school, dean, 12)
    training.run(0, 12)
    assert training.seen[-1]["good"] == 0.0 and training.seen[-1]["dean.fallback"] == 0.0


def test_a_loaded_dean_keeps_its_verdicts_until_there_are_probes_enough(
    make_school: Make, tmp_path: Path
) -> None:
    first = Training(school := make_school(), DeanController(school, **OPTIONS), 60)
    first.run(0, 60)
    first.controller.network.noise = ("a layer that is gone",)
    first.controller.keep(tmp_path)
    load = str(tmp_path / "dean.safetensors")
    dean = DeanController(school := make_school(), **OPTIONS, load=load)
    Training(school, dean, 60).run(0, 12)
    assert dean.network.noise == ("a layer that is gone",)


def test_what_helps_more_gets_the_others_share_whatever_their_strengths(make_school: Make) -> None:
    """The derivative of a strength at the cost of all, against one by finite differences."""
    dean = DeanController(
        make_school(strengths={"good": 0.9, "bad": 0.1}), **OPTIONS, keep_sum=True
    )
    h, s = (-10.0, -1.0), (0.9, 0.1)
    seen = SimpleNamespace(terms=2, names=("good", "bad"))
    ahead = SimpleNamespace(derivatives=(*h, 0.25))
    good, bad, layer = dean._to_learn_from(seen, ahead, s)  # type: ignore[arg-type]

    def value(raised: int, by: float) -> float:
        v = [each * math.exp(by if n == raised else 0.0) for n, each in enumerate(s)]
        return sum(a * b / sum(v) for a, b in zip(h, v, strict=True))

    for number, found in enumerate((good, bad)):
        assert found == pytest.approx((value(number, 1e-5) - value(number, -1e-5)) / 2e-5, rel=1e-6)
    assert good < 0 < bad and layer == 0.25


def test_a_strength_that_was_taken_far_down_by_mistake_comes_back(make_school: Make) -> None:
    """The slope of a strength's sigmoid vanishes near zero; the dean's steps must not."""
    school = make_school()
    options = {**OPTIONS, "probe_every": 1, "lr": 5e-3}
    dean = DeanController(school, **options, trust_probes=0)
    with torch.no_grad():
        dean.network.layers[4].bias.fill_(-6.0)
    training = Training(school, dean, 80)
    training.run(0, 80)
    assert training.seen[0]["good"] < 0.005
    assert training.seen[-1]["good"] > 0.6 and training.seen[-1]["bad"] < 0.4


class Done:
    """A sparsifier whose masks are fixed."""

    layers: tuple[str, ...] = ()
    strengths: dict[str, float] = {}


def test_a_dean_with_nothing_to_set_any_more_does_not_probe(
    make_school: Make, data: Any, tmp_path: Path
) -> None:
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


def test_evidence_need_not_be_asked_for(make_school: Make) -> None:
    lines: list[str] = []
    school = beside_noise(make_school(say=lines.append))
    dean = DeanController(school, **{**OPTIONS, "probe_every": 1}, trust_probes=0)
    training = Training(school, dean, 40)
    training.run(0, 40)
    assert not lines and not any(seen["dean.fallback"] for seen in training.seen)
    assert training.seen[1]["bad"] != 0.5


@pytest.mark.parametrize(
    ("steps", "options", "said"),
    [
        (30, {"trust_probes": 20}, "8 probes"),
        (4, {}, "1 probe"),
        (4, {"trust_probes": 0}, "1 probe"),
        (30, {"trust_probes": 0}, None),
        (60, {}, None),
        (60, {"keep_sum": True}, None),
    ],
)
def test_a_training_too_short_for_the_dean_says_so(
    make_school: Make, tmp_path: Path, steps: int, options: dict[str, Any], said: str | None
) -> None:
    lines: list[str] = []
    school = make_school(say=lines.append)
    training = Training(school, DeanController(school, **OPTIONS, **options), steps)
    training.run(0, steps)
    training.controller.keep(tmp_path)
    rest = "too few to judge it: no strength ever moved; shorten probe_every or train longer"
    assert lines == ([f"dean: {said}, {rest}"] if said else [])
    last = training.seen[-1]
    assert last["dean.moved"] == last["dean.judged"] == float(said is None)
    assert training.seen[0]["dean.moved"] == 0.0


def test_the_trail_has_every_strength_and_at_a_probe_what_was_found(make_school: Make) -> None:
    training = Training(school := make_school(), DeanController(school, **OPTIONS), 10)
    training.run(0, 10)
    for step, seen in enumerate(training.seen):
        assert {"strength.task", "strength.good", "strength.bad", "dean.fallback"} <= set(seen)
        found = {"distillability.good", "dean.held_out_loss", "t.good", "hypergradient.bad"}
        assert found <= set(seen) if step % 4 == 0 else not found & set(seen)
        assert all(type(value) is float for value in seen.values())


def test_probes_are_rare_enough(make_school: Make) -> None:
    """At batches of the usual size the work of probes is below 15% of the steps' own."""
    few, many = make_school(strengths={"good": 1.0}), make_school()
    assert 1 < probe_interval(few, 128) < probe_interval(many, 128) < probe_interval(many, 256)
    terms = len(many.terms)
    probe = 1 + 2 + 2 * (1 + terms) + 3
    assert probe / (3 + 2) / probe_interval(many, 128) <= 0.15
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
