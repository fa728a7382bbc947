"""Percentiles of known samples, and measuring with a clock that the test owns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing.latency import Latency, measure, measure_interleaved
from deploy.errors import ConfigError
from deploy.sessions.session import Feeds, Port


class Machine:
    """A clock, and a log of what ran on it."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now_s = 0.0
        self.drift = drift
        self.log: list[str] = []

    def clock_ns(self) -> int:
        return round(self.now_s * 1e9)

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


@given(st.lists(st.floats(0.1, 10), min_size=64, max_size=120), st.sampled_from([50.0, 75.0, 90.0]))
def test_percentile_is_a_sample_with_the_right_number_above(
    samples: list[float], percent: float
) -> None:
    value = Latency(samples).percentile(percent)
    above = math.floor(round((1 - percent / 100) * len(samples), 9))
    assert value == np.sort(samples)[::-1][above]


def test_percentile_of_a_known_sequence() -> None:
    latency = Latency([float(ms) for ms in range(130, 0, -1)])
    assert (latency.p50, latency.p90, latency.percentile(95)) == (65.0, 117.0, 124.0)
    assert latency.p99 is None
    assert latency.n == 130
    assert latency.mean_ms == 65.5


def test_a_mixture_with_outliers_has_its_percentiles() -> None:
    """98.5 % around 1 ms, 1.5 % at 10 ms: p99 is an outlier, p95 is not."""
    rng = np.random.default_rng(0)
    samples = rng.normal(1.0, 0.01, 20_000)
    samples[rng.permutation(20_000)[:300]] = 10.0
    latency = Latency(samples)
    assert latency.p50 == pytest.approx(1.0, abs=0.001)
    # The 90th percentile of the mixture is the 0.9 / 0.985 = 91.4th of the normal part: z = 1.364.
    assert latency.p90 == pytest.approx(1.01364, abs=0.0005)
    assert latency.p99 == 10.0
    stopped = latency.early_stopping(99)
    assert stopped is not None
    assert stopped.estimate == 10.0


def test_too_few_samples_state_nothing() -> None:
    assert Latency((1.0,) * 63).p90 is None
    assert Latency((1.0,) * 64).p90 == 1.0
    assert Latency(()).p50 is None
    assert Latency(()).early_stopping(90) is None


def test_scatter() -> None:
    samples = np.random.default_rng(0).normal(10, 1, 50)
    assert Latency(samples).cov == pytest.approx(np.std(samples, ddof=1) / np.mean(samples))
    assert Latency(samples).noisy
    assert not Latency((1.0, 1.0, 1.01)).noisy
    assert Latency(()).noisy
    assert math.isnan(Latency((1.0,)).cov)
    assert math.isnan(Latency(()).mean_ms)


def test_record() -> None:
    record = Latency((2.0,) * 64).to_dict(samples=True)
    assert (record["p50"], record["p90"], record["p99"], record["n"]) == (2.0, 2.0, None, 64)
    assert record["samples"] == [2.0] * 64
    assert "samples" not in Latency((2.0,)).to_dict()


def test_both_floors_hold_for_each_session() -> None:
    machine = Machine()
    sessions = {"slow": machine.session("slow", 0.02), "fast": machine.session("fast", 0.001)}
    taken = measure_interleaved(
        sessions, {}, warm_up_s=0.1, at_least_s=0.5, at_least=70, clock_ns=machine.clock_ns
    )
    for name, seconds in (("slow", 0.02), ("fast", 0.001)):
        samples_ms = taken[name].samples_ms
        assert len(samples_ms) >= 70
        assert sum(samples_ms) >= 500 - 1e-6
        assert list(samples_ms) == pytest.approx([seconds * 1e3] * len(samples_ms))


def test_a_drifting_machine_cannot_fake_a_gain() -> None:
    """Twice as slow at the end as at the start; equal sessions stay equal."""
    machine = Machine(drift=0.1)
    sessions = {name: machine.session(name, 0.001) for name in ("teacher", "student")}
    taken = measure_interleaved(
        sessions, {}, at_least_s=4.0, at_least=100, clock_ns=machine.clock_ns
    )
    teacher, student = taken["teacher"].p50, taken["student"].p50
    assert max(taken["teacher"].samples_ms) > 1.5 * min(taken["teacher"].samples_ms)
    assert student == pytest.approx(teacher, rel=0.02)


def test_measure_one() -> None:
    machine = Machine()
    latency = measure(
        machine.session("only", 0.003), {}, at_least_s=0.1, at_least=50, clock_ns=machine.clock_ns
    )
    assert latency.p50 == pytest.approx(3.0)


@pytest.mark.parametrize("setting", ["at_least", "at_least_s", "block_s"])
def test_refuses_floors_that_are_none(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is 0"):
        measure_interleaved({"a": Machine().session("a", 1.0)}, {}, **{setting: 0})


def test_refuses_to_measure_nothing() -> None:
    with pytest.raises(ConfigError, match="no session"):
        measure_interleaved({}, {})
