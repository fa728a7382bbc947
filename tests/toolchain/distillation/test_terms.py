"""The distillation objective: the weighted sum, who moves, and what travels in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.chain import check_order, standard_chain
from toolchain.distillation.building import check_names, recovery_objective
from toolchain.distillation.config import Distil, DistilLoss
from toolchain.distillation.controllers.controller import Guidance, Steady
from toolchain.distillation.controllers.fixed import FixedStrength
from toolchain.distillation.controllers.ramp import RampStrength
from toolchain.distillation.lessons import Lesson, School
from toolchain.distillation.losses.entry import LOSSES, LossEntry
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.losses.maps import at
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")


def network(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


def batch(b: int = 6) -> Batch:
    return Batch(torch.randn(b, 3, 6, 6), torch.arange(b) % 5)


def teacher(channels: int = 7, classes: int = 5) -> FrozenTeacher:
    return FrozenTeacher(network(channels, classes), FLOAT)


def objective_of(
    student: nn.Module, master: FrozenTeacher | None, config: Distil, x: Tensor, **school: Any
) -> DistillationObjective:
    teachers = None if master is None else {"pretrained": master}
    return recovery_objective(School(student, FLOAT, **school), teachers, config, x)


def test_the_default_is_one_minus_lambda_ce_plus_lambda_kl_at_four() -> None:
    student, master, x = network(4).eval(), teacher(), batch()
    objective = objective_of(student, master, Distil(), x.images_BCHW)
    objective.begin_step(0, 10)
    loss, terms = objective.loss(x)
    z_s, z_t = student(x.images_BCHW), master.network(x.images_BCHW)
    expected = 0.1 * F.cross_entropy(z_s, x.labels_B) + 0.9 * kl(z_s, z_t, 4.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["strength.kl"] == 0.9
    assert terms["kl"].item() == pytest.approx(kl(z_s, z_t, 4.0).item(), rel=1e-5)


def test_without_a_teacher_it_is_plain_training() -> None:
    student, x = network(4).eval(), batch()
    objective = objective_of(student, None, Distil(), x.images_BCHW, label_smoothing=0.1)
    objective.begin_step(0, 10)
    loss, _ = objective.loss(x)
    expected = F.cross_entropy(student(x.images_BCHW), x.labels_B, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item())


def test_terms_at_features_with_an_adapter_that_trains_and_does_not_ship() -> None:
    student, master, x = network(4), teacher(), batch()
    keys = list(student.state_dict())
    config = Distil(
        losses=(
            DistilLoss(loss="fitnet", spot="1", strength=2.0),
            DistilLoss(loss="at", spot="2", student_spot="1", strength=3.0),
        ),
        task_strength=1.0,
    )
    objective = objective_of(student, master, config, x.images_BCHW)
    objective.begin_step(0, 10)
    loss, terms = objective.loss(x)
    loss.backward(inputs=list(objective.updates[0].parameters))
    parts = 1.0 * terms["task"] + 2.0 * terms["fitnet@1"] + 3.0 * terms["at@2"]
    assert loss.item() == pytest.approx(parts.item(), rel=1e-5)
    own = {id(p) for p in student.parameters()}
    extra = [p for p in objective.updates[0].parameters if id(p) not in own]
    assert [tuple(p.shape) for p in extra] == [(7, 4, 1, 1)]
    assert all(p.grad is not None for p in objective.updates[0].parameters)
    assert all(p.grad is None for p in master.network.parameters())
    assert list(student.state_dict()) == keys


def test_attention_is_compared_without_an_adapter() -> None:
    student, master, x = network(4).eval(), teacher(), batch()
    config = Distil(losses=(DistilLoss(loss="at", spot="0"),), task_strength=0.0)
    objective = objective_of(student, master, config, x.images_BCHW)
    objective.begin_step(0, 1)
    loss, _ = objective.loss(x)
    expected = at(student[0](x.images_BCHW), master.network[0](x.images_BCHW))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


class Counting:
    """A teacher that counts its passes and returns constant logits."""

    def __init__(self) -> None:
        self.passes = 0

    def observe(self, images_BCHW: Tensor, spots: Any) -> dict[str, Tensor]:
        self.passes += 1
        return {spot: torch.zeros(len(images_BCHW), 5) for spot in spots}


class Recorded(Steady):
    """A controller that says when a term sleeps, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def strengths(self, step: int, total_steps: int, stats: Any) -> Mapping[str, float]:
        self.told.append(dict(stats))
        return {"task": 1.0, "a": float(step % 2), "b": 0.5 * (step % 2)}

    def state_dict(self) -> dict[str, Any]:
        return {"n": len(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.told = [{}] * state["n"]


def test_a_teacher_runs_once_for_all_its_terms_and_not_at_all_at_strength_zero() -> None:
    master, controller = Counting(), Recorded()
    terms = [Term("a", kl, master), Term("b", kl, master)]
    objective = DistillationObjective(School(network(4), FLOAT, tuple(terms)), controller)
    x = batch()
    objective.begin_step(0, 2)
    objective.loss(x)
    assert master.passes == 0
    objective.begin_step(1, 2)
    objective.loss(x)
    assert master.passes == 1
    assert set(controller.told[1]) == {"task"}


def test_state_holds_adapters_controller_and_what_it_was_told() -> None:
    x, term = batch(), Term("a", kl, Counting(), adapter=nn.Linear(5, 5))

    def make() -> tuple[DistillationObjective, Recorded]:
        controller, adapter = Recorded(), nn.Linear(5, 5)
        terms = (replace(term, adapter=adapter), replace(term, name="b"))
        return DistillationObjective(School(network(4), FLOAT, terms), controller), controller

    first, _ = make()
    for step in range(2):
        first.begin_step(step, 2)
        first.loss(x)
    second, controller = make()
    second.load_state_dict(first.state_dict())
    for one, other in zip(
        *(o.state_dict()["modules"].values() for o in (first, second)), strict=True
    ):
        assert torch.equal(one, other)
    assert len(controller.told) == 2
    assert second.state_dict()["last"] == first.state_dict()["last"]


class Half(Steady):
    """Lets a term see the first samples only, and sets its temperature."""

    def __init__(self, count: int) -> None:
        self._count = count

    def strengths(self, step: int, total_steps: int, stats: Any) -> Mapping[str, float]:
        return {"task": 0.0, "kl": 1.0}

    def guide(self, lesson: Lesson) -> Guidance:
        chosen = torch.arange(len(lesson.batch.labels_B)) < self._count
        return Guidance({"kl": chosen}, {"kl": {"temperature": 2.0}})


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_a_term_on_some_samples_is_scaled_by_their_share(count: int) -> None:
    student, master, x = network(4).eval(), teacher(), batch()
    terms = (Term("kl", kl, master),)
    objective = DistillationObjective(School(student, FLOAT, terms), Half(count))
    objective.begin_step(0, 1)
    loss, _ = objective.loss(x)
    z_s, z_t = student(x.images_BCHW), master.network(x.images_BCHW)
    expected = kl(z_s[:count], z_t[:count], 2.0) * count / 6 if count else torch.zeros(())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()  # a graph even where nothing was chosen


def test_one_step_runs_the_student_once_for_the_controller_and_itself() -> None:
    student, x, passes = network(4), batch(), []
    student.register_forward_hook(lambda *a: passes.append(1))
    school = School(student, FLOAT, (Term("kl", kl, teacher()),), {"task": 1.0, "kl": 1.0})
    objective = DistillationObjective(school, FixedStrength(school))
    objective.begin_step(0, 2)
    school.shared(x).task()
    objective.loss(x)
    assert len(passes) == 1
    objective.begin_step(1, 2)
    objective.loss(x)
    assert len(passes) == 2


def test_only_strengths_that_change_leave_a_trail() -> None:
    school = School(network(4), FLOAT, (Term("kl", kl, teacher()),), {"task": 1.0, "kl": 0.5})
    fixed = DistillationObjective(school, FixedStrength(school))
    fixed.begin_step(0, 5)
    assert fixed.trail() == {}
    ramp = DistillationObjective(school, RampStrength(school))
    ramp.begin_step(1, 5)
    assert ramp.trail() == {"strength.task": 1.0, "strength.kl": 0.125}


def test_a_pattern_makes_a_term_for_each_place() -> None:
    student, master, x = network(4), teacher(), batch()
    config = Distil(losses=(DistilLoss(loss="at", spot="[012]", strength=2.0),))
    objective = objective_of(student, master, config, x.images_BCHW)
    assert [term.name for term in objective.school.terms] == ["at@0", "at@1", "at@2"]
    assert objective.school.base == {"task": 0.1, "at@0": 2.0, "at@1": 2.0, "at@2": 2.0}


def test_a_second_teacher_has_terms_of_its_own() -> None:
    student, x = network(4).eval(), batch()
    one, other = teacher(), teacher()
    config = Distil(losses=(DistilLoss(loss="kl"), DistilLoss(loss="kl", teacher="ta")))
    objective = recovery_objective(
        School(student, FLOAT), {"pretrained": one, "ta": other}, config, x.images_BCHW
    )
    objective.begin_step(0, 1)
    _, values = objective.loss(x)
    z_s = student(x.images_BCHW)
    assert float(values["kl"]) == pytest.approx(kl(z_s, one.network(x.images_BCHW)).item())
    assert float(values["kl:ta"]) == pytest.approx(kl(z_s, other.network(x.images_BCHW)).item())


def test_a_loss_that_looks_at_labels_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
        return labels_B.float().mean() + 0.0 * student_BC.sum()

    entry = LossEntry("wrong", wrong, "shape", "test")
    monkeypatch.setitem(LOSSES._entries, "wrong", entry)
    x = batch()
    config = Distil(losses=(DistilLoss(loss="wrong"),), task_strength=0.0)
    objective = objective_of(network(4), teacher(), config, x.images_BCHW)
    objective.begin_step(0, 1)
    assert objective.loss(x)[0].item() == pytest.approx(float(x.labels_B.float().mean()))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"losses": [{"loss": "klx"}]}, "did you mean 'kl'"),
        ({"losses": [{"loss": "kl", "spot": "nowhere"}]}, "'nowhere'"),
        ({"losses": [{"loss": "at", "spot": "2", "student_spot": "4"}]}, r"\(4,\).*\(7, 6, 6\)"),
        ({"losses": [{"loss": "kl"}, {"loss": "kl"}]}, "rename"),
        ({"losses": [{"loss": "kl", "teacher": "pretraned"}]}, "did you mean 'pretrained'"),
        ({"losses": [{"loss": "kl", "spot": ["1", "2"]}]}, "accepted is one path"),
        ({"losses": [{"loss": "fsp", "spot": "1"}]}, "accepted are two paths"),
        ({"losses": [{"loss": "at", "temperature": 2.0}]}, "unknown 'temperature'"),
        ({"controller": "deen"}, "choose from"),
        ({"controller": "ramp", "controller_options": {"begin": 1}}, "begin"),
        (
            {"controller": "fixed", "controller_options": {"begin": 1}},
            "no options here, leave it out",
        ),
        (
            {"controller": "ramp", "controller_options": {"start": "x"}},
            r"\.start: 'x' given; accepted",
        ),
        (
            {"controller": "dean", "controller_options": {"held_out": "many"}},
            "held_out: 'many' given",
        ),
        (
            {"controller": "anti", "controller_options": {"probe_size": 2.5}},
            "probe_size: 2.5 given",
        ),
        ({"controller": "replay"}, r"\(replay\): log is required"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        objective_of(network(4), teacher(), Distil(**config), torch.randn(1, 3, 6, 6))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"losses": [{"loss": "klx"}]}, "did you mean 'kl'"),
        ({"losses": [{"loss": "kl", "options": {"alpha": 1}}]}, "unknown 'alpha'"),
        ({"losses": [{"loss": "kl", "teacher": "smal"}], "teachers": {"small": {"kind": "ema"}}},
         "did you mean 'small'"),
        ({"controller": "deen"}, "did you mean 'dean'"),
        ({"controller": "dean", "controller_options": {"held_out": "many"}}, "'many' given"),
        ({"teachers": {"pretrained": {"kind": "ema"}}}, "give the teacher another name"),
        ({"losses": [{"loss": "kl", "spot": ["a", "b"]}]}, "accepted is one path"),
        ({"losses": [{"loss": "fsp", "spot": ["a", "b"], "student_spot": "a"}]}, "two paths"),
        ({"losses": [{"loss": "kl"}, {"loss": "kl"}]}, "kl at logits of pretrained given 2 times"),
        ({"losses": [{"loss": "at", "spot": "a"}, {"loss": "at", "spot": "a", "student_spot": "b"}]},
         "at at a of pretrained given 2 times"),
        ({"losses": [{"loss": "ofa", "spot": "a"}, {"loss": "ofa", "student_spot": "a"}]},
         "ofa at a of pretrained given 2 times"),
        ({"losses": [{"loss": "kl", "temperature": 4, "options": {"temperature": -3}}]},
         "temperature 4 given, and -3 among its options"),
        ({"losses": [{"loss": "ofa", "spot": "no", "student_spot": "layer*"}]}, "leave spot out"),
        ({"controller": "temperature", "losses": [{"loss": "at", "spot": "layer1"}]}, "at given"),
        ({"controller": "temperature", "losses": [{"loss": "crd", "spot": "penultimate"}]}, "crd given"),
        ({"controller": "spot-adaptive", "teachers": {"mean": {"kind": "ema"}},
          "losses": [{"loss": "at", "spot": "layer1"}, {"loss": "kl", "teacher": "mean"}]},
         r"2 teachers outside the student \(pretrained, mean\)"),
        ({"controller": "spot-adaptive", "teachers": {"inside": {"kind": "in-network"}},
          "losses": [{"loss": "kl"}, {"loss": "sp", "spot": "layer1", "teacher": "inside"}]},
         "sp at layer1 given, .*accepted is a loss of a teacher outside the student there"),
        ({"controller": "spot-adaptive",
          "losses": [{"loss": "at", "spot": "layer1"}, {"loss": "ofa", "spot": "layer2"}]},
         "ofa at layer2 compares .* another controller"),
        ({"controller": "spot-adaptive"}, "kl at logits given, and spot-adaptive decides at spots"),
        ({"controller": "spot-adaptive", "losses": []}, "no loss given.*layer3 or penultimate"),
        ({"controller": "spot-adaptive", "losses": [{"loss": "ofa", "spot": "layer*"}]}, "ofa at"),
        ({"controller": "spot-adaptive",
          "losses": [{"loss": "fsp", "spot": ["layer1", "logits"]}]}, "fsp at"),
    ],
)  # fmt: skip
def test_names_are_checked_before_anything_is_built(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_names(Distil(**config))


@pytest.mark.parametrize("spot", ["layer*", "penultimate", "layer3"])
def test_a_loss_inside_is_enough_for_a_controller_that_decides_there(spot: str) -> None:
    losses = (DistilLoss(loss="kl"), DistilLoss(loss="at", spot=spot))
    check_names(Distil(losses=losses, controller="spot-adaptive"))


def test_pqks_own_term_counts_for_a_controller_that_needs_a_temperature() -> None:
    distil = Distil(controller="temperature", losses=(DistilLoss(loss="at", spot="layer1"),))
    stages = [*standard_chain()]
    place = next(n for n, stage in enumerate(stages) if stage.stage == "pqk-distil")
    stages[place] = stages[place].model_copy(update={"pretrained": distil})
    check_order(stages)


def test_an_in_network_teacher_where_nothing_is_masked_is_refused_before_the_first_stage() -> None:
    given = {
        "losses": [{"loss": "kl", "teacher": "inside"}],
        "teachers": {"inside": {"kind": "in-network"}},
    }
    stages = [*standard_chain()]
    masked = next(n for n, stage in enumerate(stages) if stage.stage == "pqk-distil")
    cut = next(n for n, stage in enumerate(stages) if stage.stage == "recover")
    distil = Distil.model_validate(given)
    stages[masked] = stages[masked].model_copy(update={"pretrained": distil})
    check_order(stages)
    stages[cut] = stages[cut].model_copy(update={"distil": distil})
    with pytest.raises(ConfigError, match=r"stages: recover after slim: .*inside.*nothing is mask"):
        check_order(stages)


def test_spot_adaptive_without_a_spot_is_refused_before_the_first_stage() -> None:
    stages = standard_chain()
    distil = Distil(controller="spot-adaptive")
    place = next(n for n, stage in enumerate(stages) if stage.stage == "recover")
    wrong = [*stages]
    wrong[place] = stages[place].model_copy(update={"distil": distil})
    with pytest.raises(ConfigError, match=rf"stages.{place}. .recover.: .*spot-adaptive") as error:
        check_order(wrong)
    assert "\n" not in str(error.value)
    check_order(stages)


def test_names_that_exist_pass() -> None:
    check_names(Distil())
    check_names(Distil(teachers={"pretrained": {"kind": "pretrained"}}, controller="dean"))  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_strengths_are_finite(value: float) -> None:
    with pytest.raises(ValidationError):
        DistilLoss(loss="kl", strength=value)
    with pytest.raises(ValidationError):
        Distil(task_strength=value)


def test_class_counts_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 classes.*9 in the teacher"):
        objective_of(network(4), teacher(7, 9), Distil(), torch.randn(1, 3, 6, 6))


def test_terms_may_not_be_called_task() -> None:
    with pytest.raises(ConfigError, match="rename"):
        school = School(network(4), FLOAT, (Term("task", kl, Counting()),))
        DistillationObjective(school, FixedStrength(school))
