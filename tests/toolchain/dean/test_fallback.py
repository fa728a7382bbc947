"""The fallback's criterion at its edges, and against arithmetic by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.dean.fallback import Scale, Series, Trust, agreement, margin


def filled(values: list[float], probes: int, again: float | None = None) -> Trust:
    """A trust that found ``values`` in halves, and the same, or always ``again``, from probe to probe."""
    trust = Trust(probes)
    for number, value in enumerate(values):
        trust.add(value, None if number == 0 else value if again is None else again)
    return trust


def test_there_is_no_judgement_before_n_probes() -> None:
    trust = filled([-1.0] * 4, 5)
    assert trust.learns and trust.stands and not trust.judged
    trust.add(-1.0, 1.0)
    assert not trust.learns and not trust.stands and trust.judged


def test_both_kinds_have_to_agree() -> None:
    for halves, probes, trusted in ((0.5, 0.5, True), (0.5, -0.5, False), (-0.5, 0.5, False)):
        trust = filled([halves] * 8, 5, probes)
        assert trust.learns is trusted and trust.stands is trusted


def test_each_derivative_is_measured_by_its_own_history() -> None:
    scale = Scale()
    scale.add(["a", "b"], [3.0, 0.0])
    scale.add(["a", "b"], [4.0, 0.0])
    assert scale.divide(["b", "a"], [0.0, 5.0]) == pytest.approx([0.0, 5.0 / 12.5**0.5])
    again = Scale()
    again.load_state_dict(scale.state_dict())
    again.add(["a"], [1.0])
    assert again.divide(["a"], [1.0]) == pytest.approx([(3 / 26) ** 0.5])
    assert scale.divide(["a"], [1.0]) == pytest.approx([12.5**-0.5])


def test_what_was_learned_stands_when_the_signal_ends() -> None:
    trust = filled([0.9] * 50 + [0.5, -0.5] * 5, 10)
    assert trust.stands and not trust.learns


def test_trust_recovers() -> None:
    trust = filled([-0.5] * 10, 10)
    assert not trust.stands
    for _ in range(60):
        trust.add(0.9, 0.9)
    assert trust.stands and trust.learns


def test_the_margin_by_hand() -> None:
    values = [0.1, 0.4, -0.2, 0.3]
    mean = sum(values) / 4
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    assert margin(values) == pytest.approx(mean - 1.645 * spread / 2)


def test_noise_passes_about_one_time_in_twenty() -> None:
    source = random.Random(0)
    runs = [margin([source.uniform(-1, 1) for _ in range(40)]) > 0 for _ in range(1000)]
    assert 0.02 < sum(runs) / 1000 < 0.09


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=6))
def test_agreement_is_a_cosine(pairs: list[tuple[float, float]]) -> None:
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    assert -1.0 <= agreement(left, right) <= 1.0
    assert agreement(left, right) == agreement(right, left)


def test_a_resumed_judgement_is_the_same() -> None:
    trust, again = filled([0.1, -0.3, 0.5, 0.2], 3), Trust(3)
    again.load_state_dict(trust.state_dict())
    assert (again.learns, again.stands) == (trust.learns, trust.stands)
    assert again.judged and again.halves.evidence == trust.halves.evidence
    assert again.probes.evidence == trust.probes.evidence != again.halves.evidence


def test_a_series_forgets_what_is_not_recent_and_remembers_all() -> None:
    series = Series(3)
    for value in [-1.0, -0.9, 0.5, 0.6, 0.7]:
        series.add(value)
    assert series.learns and series.stands
    assert series.evidence == margin([-1.0, -0.9, 0.5, 0.6, 0.7]) < 0
