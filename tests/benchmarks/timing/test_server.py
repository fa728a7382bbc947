"""Queues against queueing theory, in simulated time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from benchmarks.records.request import Request
from benchmarks.timing.interleaving import Floors
from benchmarks.timing.latency import Latency
from benchmarks.timing.server import Load, highest_load, serve, serve_all
from deploy.errors import ConfigError, DeviceError


class Machine:
    """Answers take ``service_s``, fixed or drawn; sleeping takes as long as asked."""

    def __init__(self, service_s: float, exponential: bool = False) -> None:
        self.now_ns = 0
        self.service_s, self.exponential = service_s, exponential
        self.rng = np.random.default_rng(1)

    def clock_ns(self) -> int:
        self.now_ns += 50  # so that waiting in a loop comes to an end
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round((seconds + 0.001) * 1e9)  # to the end: no looping in a test

    def call(self) -> None:
        took_s = self.rng.exponential(self.service_s) if self.exponential else self.service_s
        self.now_ns += round(took_s * 1e9)

    @property
    def time(self) -> dict[str, Any]:
        return {"clock_ns": self.clock_ns, "sleep": self.sleep}


def test_an_idle_server_answers_at_once() -> None:
    machine = Machine(0.002)
    load = serve(machine.call, 5, Floors(at_least_s=1, at_least=300), rng(), **machine.time)
    assert load.latency.p50 == pytest.approx(2.0, abs=0.01)
    assert load.served_qps == pytest.approx(5, rel=0.15)
    assert load.latency.n >= 300


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_waiting_is_that_of_queueing_theory() -> None:
    """M/M/1: times from arrival to answer are exponential with rate mu - lambda (Erlang)."""
    machine = Machine(0.01, exponential=True)
    load = serve(machine.call, 70, Floors(at_least_s=1, at_least=20_000), rng(), **machine.time)
    mean_ms = 1e3 / (100 - 70)
    assert load.latency.mean_ms == pytest.approx(mean_ms, rel=0.1)
    assert load.latency.p50 == pytest.approx(mean_ms * math.log(2), rel=0.1)


def test_both_floors_hold() -> None:
    machine = Machine(0.0001)
    load = serve(machine.call, 1000, Floors(at_least_s=2, at_least=10), rng(), **machine.time)
    assert load.latency.n == pytest.approx(2000, rel=0.1)


def test_a_hopeless_load_ends_early() -> None:
    machine = Machine(0.01)
    floors = Floors(at_least_s=1, at_least=10_000)
    load = serve(machine.call, 200, floors, rng(), bound_ms=20, **machine.time)
    assert load.latency.n < 1000
    assert not load.holds(20)


def test_the_highest_load_is_the_highest() -> None:
    """M/D/1 with a bound of three service times; loads around what was found are checked."""
    machine = Machine(0.01)
    floors = Floors(at_least_s=1, at_least=4000)

    def run(qps: float) -> Load:
        return serve(machine.call, qps, floors, rng(), bound_ms=30, **machine.time)

    best, tried = highest_load(run, 30, 100.0)
    assert best.holds(30)
    assert best in tried
    assert 20 < best.offered_qps < 80
    assert not run(1.15 * best.offered_qps).holds(30)


def test_a_bound_that_nothing_keeps() -> None:
    machine = Machine(0.01)

    def run(qps: float) -> Load:
        return serve(machine.call, qps, Floors(at_least_s=0.1, at_least=700), rng(), bound_ms=5,
                     **machine.time)  # fmt: skip

    with pytest.raises(DeviceError, match="a p99 of 5 ms is not kept even at"):
        highest_load(run, 5, 100.0)


def test_few_samples_hold_nothing() -> None:
    assert not Load(1, 1, Latency(np.ones(600))).holds(10)
    assert Load(1, 1, Latency(np.ones(700))).holds(10)


@pytest.mark.parametrize("qps", [0.0, -1.0, math.nan, math.inf])
def test_refuses_no_load(qps: float) -> None:
    with pytest.raises(ConfigError, match="target_qps is"):
        serve(lambda: None, qps, Floors(), rng())


def test_models_take_turns_at_the_load_that_was_asked() -> None:
    machine = Machine(0.001)
    order: list[str] = []

    def answering(name: str):  # type: ignore[no-untyped-def]
        def call() -> None:
            order.append(name)
            machine.call()

        return call

    served: dict[str, Load] = {}
    heard: list[float] = []
    serve_all(
        {name: answering(name) for name in ("teacher", "student")},
        Request(scenario="server", target_qps=50, profile="quick"),
        served,
        {},
        progress=heard.append,
        **machine.time,
    )
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns[-3:] == ["teacher", "student", "teacher"]
    assert all(load.latency.n >= 662 for load in served.values())
    assert heard == sorted(heard)


def test_each_model_has_its_own_highest_load() -> None:
    machine, tried, served = Machine(0.0), {}, {}

    def taking(seconds: float):  # type: ignore[no-untyped-def]
        def call() -> None:
            machine.now_ns += round(seconds * 1e9)

        return call

    serve_all(
        {"teacher": taking(0.02), "student": taking(0.01)},
        Request(scenario="server", bound_ms=60, profile="quick"),
        served,
        tried,
        **machine.time,
    )
    assert served["student"].offered_qps > 1.5 * served["teacher"].offered_qps
    assert {"offered_qps", "p99"} <= set(tried["student"][0])
