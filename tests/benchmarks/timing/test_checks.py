"""Drift, outliers and correlation are seen where they are, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.timing.checks import check_latency, correlation, outliers, trend
from benchmarks.timing.latency import Latency

RNG = np.random.default_rng(0)


def quiet(n: int = 2000) -> np.ndarray:
    return 1 + 0.01 * RNG.normal(size=n)


def test_a_quiet_sequence_warns_of_nothing() -> None:
    checks, warnings = check_latency("student", Latency(quiet()))
    assert warnings == []
    assert set(checks) == {"trend", "outliers", "autocorrelation"}


def test_trend() -> None:
    drifting = trend(Latency(quiet() * np.linspace(1, 1.1, 2000)))
    assert drifting["drifts"]
    assert drifting["change"] == pytest.approx(0.067, abs=0.01)  # 2/3 of the drift lie between
    assert not trend(Latency(quiet() * np.linspace(1, 1.01, 2000)))["drifts"]
    assert not trend(Latency(quiet()))["drifts"]
    assert not trend(Latency(np.ones(100)))["drifts"]


def test_outliers() -> None:
    samples = quiet()
    samples[::50] = 5.0
    found = outliers(Latency(samples))
    assert found["share"] == 0.02
    assert found["worst_ms"] == 5.0
    assert 1 < found["beyond_ms"] < 1.2
    assert outliers(Latency(np.ones(50)))["share"] == 0


def test_correlation() -> None:
    blocks = np.repeat(quiet(40), 50)
    told = correlation(Latency(blocks))
    assert told["lag1"] > 0.9
    assert told["independent"] < 100
    assert correlation(Latency(quiet()))["independent"] > 1500


@pytest.mark.parametrize(
    ("samples", "warning"),
    [
        (1 + 0.1 * RNG.normal(size=2000), "latencies scatter by"),
        (quiet() * np.linspace(1, 1.1, 2000), "the median moved by"),
        (np.where(np.arange(2000) % 50, quiet(), 5.0), "of the calls took over"),
        (np.repeat(quiet(40), 50), "independent ones"),
        (quiet(19), "19 samples are too few"),
    ],
)
def test_warnings(samples: np.ndarray, warning: str) -> None:
    _, warnings = check_latency("student", Latency(samples))
    assert any(warning in line and line.startswith("student: ") for line in warnings)
