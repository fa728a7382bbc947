"""Percentiles by definition, and measuring with a clock that the test owns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.latency import Latency, measure, measure_interleaved, samples_needed
from deploy.errors import ConfigError
from deploy.sessions.session import Feeds, Port


class Machine:
    """A clock, and a log of what ran on it."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now_s = 0.0
        self.drift = drift
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now_s

    def session(self, name: str, seconds: float) -> Fake:
        return Fake(self, name, seconds)


class Fake:
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    def __init__(self, machine: Machine, name: str, seconds: float) -> None:
        self.machine, self.name, self.seconds = machine, name, seconds

    def run(self, feeds: Feeds) -> Feeds:
        self.machine.now_s += self.seconds * (1 + self.machine.drift * self.machine.now_s)
        self.machine.log.append(self.name)
        return {}

    def close(self) -> None:
        pass


@given(st.lists(st.floats(0.1, 10), min_size=44, max_size=120), st.sampled_from([50.0, 75.0, 90.0]))
def test_percentile_is_a_sample_with_the_right_number_above(
    samples: list[float], percent: float
) -> None:
    value = Latency(tuple(samples)).percentile(percent)
    above = math.floor(round((1 - percent / 100) * len(samples), 9))
    assert value == np.sort(samples)[::-1][above]


def test_percentile_of_a_known_sequence() -> None:
    latency = Latency(tuple(float(ms) for ms in range(100, 0, -1)))
    assert (latency.p50, latency.p90, latency.percentile(95)) == (50.0, 90.0, 95.0)
    assert latency.n == 100
    assert latency.mean_ms == 50.5


@pytest.mark.parametrize(("percent", "needed"), [(50, 7), (90, 44), (95, 90), (99, 459)])
def test_too_few_samples_state_nothing(percent: float, needed: int) -> None:
    assert samples_needed(percent) == needed
    assert Latency((1.0,) * (needed - 1)).percentile(percent) is None
    assert Latency((1.0,) * needed).percentile(percent) == 1.0


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_percentiles_lie_inside(percent: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 100"):
        Latency((1.0,) * 10).percentile(percent)


def test_scatter() -> None:
    samples = tuple(np.random.default_rng(0).normal(10, 1, 50))
    assert Latency(samples).cov == pytest.approx(np.std(samples, ddof=1) / np.mean(samples))
    assert Latency(samples).noisy
    assert not Latency((1.0, 1.0, 1.01)).noisy
    assert Latency(()).noisy
    assert math.isnan(Latency((1.0,)).cov)


def test_record() -> None:
    record = Latency((2.0,) * 50).to_dict(samples=True)
    assert (record["p50"], record["p90"], record["p99"], record["n"]) == (2.0, 2.0, None, 50)
    assert len(record["samples"]) == 50
    assert "samples" not in Latency((2.0,)).to_dict()


def test_both_floors_hold_for_each_session() -> None:
    machine = Machine()
    sessions = {"slow": machine.session("slow", 0.02), "fast": machine.session("fast", 0.001)}
    taken = measure_interleaved(
        sessions, {}, warm_up_s=0.1, at_least_s=0.5, at_least=70, clock=machine.clock
    )
    for name, seconds in (("slow", 0.02), ("fast", 0.001)):
        samples_ms = taken[name].samples_ms
        assert len(samples_ms) >= 70
        assert sum(samples_ms) >= 500 - 1e-6
        assert samples_ms == pytest.approx([seconds * 1e3] * len(samples_ms))


def test_blocks_alternate_and_turn_round() -> None:
    machine = Machine()
    sessions = {name: machine.session(name, 1 / 64) for name in ("a", "b")}
    measure_interleaved(
        sessions,
        {},
        warm_up_s=5 / 64,
        at_least_s=1,
        at_least=1,
        block_s=2 / 64,
        clock=machine.clock,
    )
    timed = machine.log[10:]
    # A block is one call that is not counted and two that are; the order reverses every round.
    assert timed[:12] == ["a"] * 3 + ["b"] * 6 + ["a"] * 3


def test_a_drifting_machine_cannot_fake_a_gain() -> None:
    """Twice as slow at the end as at the start; equal sessions stay equal."""
    machine = Machine(drift=0.1)
    sessions = {name: machine.session(name, 0.001) for name in ("teacher", "student")}
    taken = measure_interleaved(sessions, {}, at_least_s=4.0, at_least=100, clock=machine.clock)
    teacher, student = taken["teacher"].p50, taken["student"].p50
    assert max(taken["teacher"].samples_ms) > 1.5 * min(taken["teacher"].samples_ms)
    assert student == pytest.approx(teacher, rel=0.02)


def test_measure_one() -> None:
    machine = Machine()
    latency = measure(
        machine.session("only", 0.003), {}, at_least_s=0.1, at_least=50, clock=machine.clock
    )
    assert latency.p50 == pytest.approx(3.0)


@pytest.mark.parametrize("setting", ["at_least", "at_least_s", "block_s"])
def test_refuses_floors_that_are_none(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is 0"):
        measure_interleaved({"a": Machine().session("a", 1.0)}, {}, **{setting: 0})


def test_refuses_to_measure_nothing() -> None:
    with pytest.raises(ConfigError, match="no session"):
        measure_interleaved({}, {})
