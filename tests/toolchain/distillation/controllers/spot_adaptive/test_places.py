"""Where SAKD decides, and what it says of terms that it cannot route."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.controllers.spot_adaptive.places import (
    decision_places,
    routed_terms,
)
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")
TEACHER = FrozenTeacher(nn.Identity(), FLOAT)
ORDER = ["conv1", "layer1", "layer2", "layer10", "penultimate", "logits"]


def term(name: str, spot: Any, student_spot: Any = None, teacher: Any = TEACHER) -> Term:
    return Term(name, kl, teacher, spot, spot if student_spot is None else student_spot)


def test_columns_follow_the_order_of_execution_and_the_logits_are_last() -> None:
    terms = [
        term("kl", "logits"),
        term("b", "layer10"),
        term("a", "layer2"),
        term("c", "penultimate"),
        term("again", "layer2"),
        term("pair", ("layer2", "layer10")),
    ]
    places = decision_places(terms, ORDER, ORDER)
    assert places.names == ("layer2", "layer10", "penultimate", "logits")
    assert places.teacher == ("layer2", "layer10", "penultimate")
    assert places.column == {"kl": 3, "b": 1, "a": 0, "c": 2, "again": 0, "pair": 1}


def test_logits_are_a_place_though_no_term_is_there() -> None:
    places = decision_places([term("a", "layer2", "conv1")], ORDER, ORDER)
    assert places.names == ("conv1", "logits") and places.teacher == ("layer2",)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([term("kl", "logits")], "outside the student is 'logits'"),
        ([term("ofa@layer1", "logits", "layer1")], "'ofa@layer1'.*'layer1'.*'logits'"),
        (
            [term("a", "layer2", "layer1"), term("b", "layer1", "layer2")],
            "layer1 with layer2, layer2",
        ),
        ([term("a", "layer1"), term("b", "layer2", "layer1")], "one partner each"),
        ([term("a", "layer1"), term("b", "layer1", "layer2")], "one partner each"),
    ],
)
def test_terms_that_cannot_be_routed_are_refused_in_one_line(
    terms: list[Term], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        decision_places(terms, ORDER, ORDER)
    assert "\n" not in str(error.value)


class Inside:
    """A teacher within the student."""

    def __init__(self, student: nn.Module) -> None:
        self.network = student

    def observe(self, images_BCHW: Tensor, spots: Any) -> dict[str, Tensor]:
        return {}


def test_a_teacher_within_the_student_is_no_route() -> None:
    student = nn.Identity()
    terms = [term("a", "layer1"), term("b", "logits", teacher=Inside(student))]
    assert routed_terms(terms, student) == ((terms[0],), TEACHER)
    with pytest.raises(ConfigError, match="0 teachers"):
        routed_terms(terms[1:], student)


def test_two_networks_to_route_through_are_refused() -> None:
    other = FrozenTeacher(nn.Identity(), FLOAT)
    with pytest.raises(ConfigError, match="2 teachers"):
        routed_terms([term("a", "layer1"), term("b", "layer2", teacher=other)], nn.Identity())
