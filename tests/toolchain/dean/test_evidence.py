"""The criterion at its edges, against arithmetic by hand and against its own error rate."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.dean.evidence import Evidence, confidence, t_statistic


def t_of(values: list[float]) -> float:
    return t_statistic(len(values), sum(values), sum(v * v for v in values))


def shows(values: list[float]) -> bool:
    return confidence(t_of(values), len(values)) > 0.95


def filled(values: list[float], probes: int) -> Evidence:
    evidence = Evidence(probes)
    for value in values:
        evidence.add(["kl"], [value])
    return evidence


def test_nothing_is_shown_before_n_probes() -> None:
    evidence = filled([-1.0, -1.1, -0.9, -1.0], 5)
    assert not evidence.shown("kl") and not evidence.judged
    evidence.add(["kl"], [-1.0])
    assert evidence.shown("kl") and evidence.judged


def test_each_strength_is_judged_by_itself() -> None:
    evidence = Evidence(6)
    for number in range(12):
        evidence.add(["clear", "noise"], [-1.0 - 0.1 * (number % 3), (-1.0) ** number])
    assert evidence.shown("clear") and not evidence.shown("noise")
    assert not evidence.shown("never seen")
    assert evidence.t("clear") < -2.2 and abs(evidence.t("noise")) < 0.5 and evidence.t("x") == 0.0


def test_each_derivative_is_measured_by_its_recent_past() -> None:
    evidence = Evidence(2)
    evidence.add(["a", "b"], [3.0, 0.0])
    assert (evidence.last("a"), evidence.last("b")) == (1.0, 0.0)
    evidence.add(["a"], [-4.0])
    assert evidence.last("a") == pytest.approx(-4 / math.sqrt((9 + 16) / 2))
    evidence.add(["a"], [1.0])
    assert evidence.last("a") == pytest.approx(1 / math.sqrt((16 + 1) / 2))


@given(st.lists(st.floats(-9, 9).filter(lambda v: abs(v) > 1e-3), min_size=2), st.floats(1e-6, 1e6))
def test_a_unit_changes_nothing(values: list[float], unit: float) -> None:
    plain, scaled = filled(values, 4), filled([unit * value for value in values], 4)
    assert scaled.last("kl") == pytest.approx(plain.last("kl"))
    assert scaled.t("kl") == pytest.approx(plain.t("kl"), rel=1e-4, abs=1e-4)


def test_what_was_shown_stands_when_the_signal_ends() -> None:
    assert filled([0.9, 1.1] * 20 + [0.5, -0.5] * 3, 6).shown("kl")


def test_a_sign_that_changes_is_seen_by_the_last_probes() -> None:
    evidence = filled([1.0, 0.8] * 5 + [-1.0, -0.8] * 5, 6)
    assert not shows([1.0, 0.8] * 5 + [-1.0, -0.8] * 5)
    assert evidence.shown("kl") and evidence.last("kl") < 0


def test_what_was_shown_is_not_dropped_for_one_probe() -> None:
    evidence = filled([1.0, 1.1, 0.9, 1.0, 1.2, 1.0], 6)
    assert evidence.shown("kl")
    evidence.add(["kl"], [-1.4])
    assert 0.9 < confidence(evidence.t("kl"), 7) < 0.95 and evidence.shown("kl")
    # The same numbers do not show it to one who has not seen the first six before.
    assert not filled([-1.4, 1.0, 1.1, 0.9, 1.0, 1.2, 1.0], 7).shown("kl")
    for number in range(60):
        evidence.add(["kl"], [(-1.0) ** number])
    assert not evidence.shown("kl")


def test_what_is_not_finite_says_nothing() -> None:
    evidence = filled([1.0, math.inf, 1.1, math.nan, 0.9, 1.0, 1.1, 1.0], 6)
    assert math.isfinite(evidence.t("kl")) and math.isfinite(evidence.last("kl"))
    assert evidence.shown("kl")


def test_t_by_hand_and_its_quantile() -> None:
    values = [0.1, 0.4, -0.2, 0.3]
    mean = sum(values) / 4
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    assert t_of(values) == pytest.approx(2 * mean / spread)
    # Student's table: 4 degrees of freedom, 95% within 2.776.
    base = [-1.5, -0.5, 0.0, 0.5, 1.5]
    for t, shown in ((2.77, False), (2.78, True), (-2.77, False), (-2.78, True)):
        shift = t * math.sqrt(sum(v * v for v in base) / 4) / math.sqrt(5)
        assert shows([v + shift for v in base]) is shown


def test_noise_passes_about_one_time_in_twenty() -> None:
    source = random.Random(0)
    runs = [shows([source.gauss(0, 1) for _ in range(8)]) for _ in range(2000)]
    assert 0.035 < sum(runs) / 2000 < 0.065


def test_a_strength_of_noise_is_the_recipes_nearly_all_the_time() -> None:
    source, shown = random.Random(1), 0
    for _ in range(100):
        evidence = Evidence(6)
        for _ in range(60):
            evidence.add(["noise"], [source.gauss(0, 1)])
            shown += evidence.shown("noise")
    assert 0 < shown / 6000 < 0.1


def test_without_a_presumption_of_noise_everything_is_a_signal() -> None:
    evidence = Evidence(6, presume=False)
    assert evidence.shown("kl")
    evidence.add(["kl"], [0.0])
    assert evidence.shown("kl") and evidence.last("kl") == 0.0


def test_resumed_evidence_is_the_same() -> None:
    one = filled([0.1, -0.3, 0.5, 0.2], 3)
    again = Evidence(3)
    again.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for evidence in (one, again):
        evidence.add(["kl"], [0.7])
    assert again.state_dict() == one.state_dict()
    assert (again.t("kl"), again.last("kl")) == (one.t("kl"), one.last("kl"))
