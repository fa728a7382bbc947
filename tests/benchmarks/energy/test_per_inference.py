"""Energy against integrals that are known; when there is no number; what is said beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.energy.per_inference import UPDATES, energy_per_inference, integrate
from deploy.errors import ConfigError, DeviceError
from deploy.power.meter import Trace


def trace_of(
    power: Callable[[np.ndarray], np.ndarray],
    *,
    seconds: float = 30.0,
    interval_s: float = 0.1,
    start_s: float = 1000.0,
    jitter: float = 0.0,
    **more: object,
) -> Trace:
    """A sensor that has a new value at every sample; ``power`` is given seconds since the start."""
    time_s = np.arange(0.0, seconds + interval_s / 2, interval_s)
    if jitter:
        time_s[1:-1] += np.random.default_rng(0).uniform(-jitter, jitter, len(time_s) - 2)
    made = {"rails": {}, "updates": len(time_s), "method": "test", "interval_s": interval_s}
    made["updated"] = np.ones(len(time_s), dtype=bool)
    return Trace(time_s=time_s + start_s, power_w=power(time_s), **{**made, **more})  # type: ignore[arg-type]


watts = st.floats(-5, 500, allow_nan=False)
edges = st.tuples(st.floats(1, 12), st.floats(4, 15)).map(lambda pair: (pair[0], sum(pair)))


@given(level=watts, window=edges)
def test_constant(level: float, window: tuple[float, float]) -> None:
    trace = trace_of(lambda t: np.full_like(t, level), jitter=0.04)
    start, end = window[0] + 1000, window[1] + 1000
    energy = energy_per_inference(trace, [(start, end)], 10)
    assert energy.total_j == pytest.approx(level * (end - start) / 10, abs=1e-9)


@given(slope=st.floats(-20, 20), base=watts, window=edges)
def test_ramp(slope: float, base: float, window: tuple[float, float]) -> None:
    trace = trace_of(lambda t: base + slope * t, jitter=0.04)
    (a, b), n = window, 7
    energy = energy_per_inference(trace, [(a + 1000, b + 1000)], n)
    expected = base * (b - a) + slope * (b**2 - a**2) / 2
    assert energy.total_j == pytest.approx(expected / n, abs=1e-6)  # trapezoids are exact for lines


@given(at=st.floats(6, 20), low=st.floats(0, 10), high=st.floats(10, 100))
def test_step(at: float, low: float, high: float) -> None:
    trace = trace_of(lambda t: np.where(t < at, low, high))
    energy = energy_per_inference(trace, [(1005.0, 1025.0)], 1)
    expected = low * (at - 5) + high * (25 - at)
    # Between two samples the step may have been anywhere: half an interval at most.
    assert energy.total_j is not None
    assert abs(energy.total_j - expected) <= 0.5 * 0.1 * (high - low) + 1e-9


@given(frequency=st.floats(0.05, 0.5), phase=st.floats(0, 6.28), window=edges)
def test_sine(frequency: float, phase: float, window: tuple[float, float]) -> None:
    omega = 2 * math.pi * frequency
    trace = trace_of(lambda t: 20 + 10 * np.sin(omega * t + phase))
    a, b = window
    energy = energy_per_inference(trace, [(a + 1000, b + 1000)], 1)
    expected = 20 * (b - a) - 10 / omega * (
        math.cos(omega * b + phase) - math.cos(omega * a + phase)
    )
    # Error of the trapezoid: length x h^2 / 12 x the largest second derivative; twice at the edges.
    bound = (b - a + 0.4) * 0.1**2 / 12 * 10 * omega**2 + 2 * 0.1 * 10 * omega**2 * 0.1**2 / 8
    assert energy.total_j == pytest.approx(expected, abs=bound + 1e-9)


def test_edges_are_interpolated() -> None:
    trace = trace_of(lambda t: t)
    energy = energy_per_inference(trace, [(1003.33, 1008.77)], 1)
    assert energy.total_j == pytest.approx((8.77**2 - 3.33**2) / 2)


def test_idle_is_subtracted_and_reported() -> None:
    def power(t: np.ndarray) -> np.ndarray:
        return np.where(t < 5, 4.0, np.where(t < 20, 10.0, 6.0))

    trace = trace_of(power)
    energy = energy_per_inference(
        trace, [(1006.0, 1012.0), (1013.0, 1019.0)], [60, 60], [(1000.5, 1004.5), (1021.0, 1025.0)]
    )
    assert energy.total_j == pytest.approx(1.0)  # 10 W for 12 s, 120 inferences
    assert energy.idle_w == pytest.approx(5.0)
    assert energy.idle_windows_w == pytest.approx((4.0, 6.0))
    told = energy.to_dict()
    assert told["windows_s"] == [[1006.0, 1012.0], [1013.0, 1019.0]]
    assert told["idle_windows_s"] == [[1000.5, 1004.5], [1021.0, 1025.0]]
    assert energy.net_j == pytest.approx(0.5)
    assert energy.power_w == pytest.approx(10.0)
    assert any("idle moved" in warning for warning in energy.warnings)


def test_negative_readings_stay_in_the_average() -> None:
    trace = trace_of(lambda t: np.where(np.arange(len(t)) % 2 == 0, -1.0, 3.0))
    energy = energy_per_inference(trace, [(1005.0, 1015.0)], 1)
    assert energy.total_j == pytest.approx(10.0, rel=0.01)  # clipping would give 15
    assert any("readings are negative; they are kept" in warning for warning in energy.warnings)


def test_too_few_updates_mean_no_number() -> None:
    fresh = np.zeros(301, dtype=bool)
    fresh[::20] = True  # asked at 10 Hz, but a new value every 2 s
    trace = trace_of(lambda t: 5 + t, updated=fresh, updates=int(fresh.sum()))
    energy = energy_per_inference(trace, [(1001.0, 1028.0)], 10)
    assert (energy.total_j, energy.net_j) == (None, None)
    assert energy.updates < UPDATES < energy.samples
    assert energy.why is not None
    assert "new values" in energy.why


def test_a_stuck_sensor_gives_no_number() -> None:
    trace = trace_of(lambda t: np.full_like(t, 5.0), updated=None)
    energy = energy_per_inference(trace, [(1001.0, 1028.0)], 10)
    assert energy.total_j is None
    assert energy.updates == 0


def test_windows_outside_of_the_trace() -> None:
    trace = trace_of(lambda t: np.full_like(t, 5.0))
    for window in ((999.0, 1010.0), (1010.0, 1031.0)):
        energy = energy_per_inference(trace, [window], 10)
        assert energy.total_j is None
        assert "start the meter before the work" in str(energy.why)


def test_every_window_needs_updates_of_its_own() -> None:
    trace = trace_of(lambda t: 5 + t)
    energy = energy_per_inference(trace, [(1001.0, 1020.0), (1021.0, 1021.15)], 10)
    assert energy.total_j is None


def with_gap(gap_s: float) -> Trace:
    time_s = np.concatenate([np.arange(0, 10, 0.1), np.arange(10 + gap_s, 30, 0.1)]) + 1000
    return Trace(
        time_s,
        np.full(len(time_s), 5.0),
        {},
        len(time_s),
        "test",
        0.1,
        updated=np.ones(len(time_s), dtype=bool),
    )


def test_gaps_are_flagged() -> None:
    energy = energy_per_inference(with_gap(1.0), [(1005.0, 1025.0)], 1)
    assert energy.total_j == pytest.approx(100.0)
    assert energy.longest_gap_s == pytest.approx(1.1, abs=0.05)
    assert any("gaps of sampling" in warning for warning in energy.warnings)


def test_large_gaps_mean_no_number() -> None:
    energy = energy_per_inference(with_gap(4.0), [(1005.0, 1025.0)], 1)
    assert energy.total_j is None
    assert "gaps" in str(energy.why)


def test_the_counter_is_preferred_and_both_are_shown() -> None:
    trace = trace_of(lambda t: np.full_like(t, 10.0))
    counted = np.floor((trace.time_s - 1000) / 0.5) * 0.5 * 12.0  # 12 W, a step every half second
    trace = trace_of(lambda t: np.full_like(t, 10.0), energy_j=counted)
    energy = energy_per_inference(trace, [(1005.0, 1025.0)], 20, [(1001.0, 1004.0)])
    assert energy.by_counter_j == pytest.approx(12.0, rel=0.01)
    assert energy.by_integration_j == pytest.approx(10.0)
    assert energy.total_j == energy.by_counter_j
    assert any("over 5% apart" in warning for warning in energy.warnings)


def test_a_counter_that_never_moved_is_not_believed() -> None:
    trace = trace_of(lambda t: np.full_like(t, 10.0), energy_j=np.full(301, 7.0))
    energy = energy_per_inference(trace, [(1005.0, 1025.0)], 20)
    assert energy.by_counter_j is None
    assert energy.total_j == pytest.approx(10.0)
    assert any("counter does not cover" in warning for warning in energy.warnings)


def test_uncertainty_has_the_sensors_step_and_the_scatter() -> None:
    trace = trace_of(lambda t: np.where(t < 15, 10.0, 12.0), resolution_w=0.4)
    windows = [(1002.0, 1012.0), (1017.0, 1027.0)]
    energy = energy_per_inference(trace, windows, [100, 100])
    assert energy.uncertainty_parts_j is not None
    assert energy.uncertainty_parts_j["resolution"] == pytest.approx(0.4 / 12**0.5 * 20 / 200)
    assert energy.uncertainty_parts_j["scatter"] == pytest.approx(0.1)  # of 1.0 and 1.2 J
    parts = energy.uncertainty_parts_j.values()
    assert energy.uncertainty_j == pytest.approx(math.sqrt(sum(part**2 for part in parts)))


def test_no_idle_means_no_net() -> None:
    energy = energy_per_inference(trace_of(lambda t: 5 + t), [(1005.0, 1025.0)], 1)
    assert energy.total_j is not None
    assert (energy.net_j, energy.net_why) == (None, "idle was not measured")
    outside = energy_per_inference(
        trace_of(lambda t: 5 + t), [(1005.0, 1025.0)], 1, [(990.0, 999.0)]
    )
    assert (outside.net_j, outside.net_why) == (None, "the trace does not cover the time at idle")


def test_the_record_is_json_and_states_the_criterion() -> None:
    energy = energy_per_inference(trace_of(lambda t: 5 + t), [(1005.0, 1025.0)], 1)
    made = json.loads(json.dumps(energy.to_dict()))
    assert "new values of the sensor" in made["criterion"]
    assert made["method"] == "test"
    assert made["interval_s"] == 0.1


def test_a_sum_of_inferences_is_as_good_as_counts() -> None:
    trace = trace_of(lambda t: 5 + t)
    windows = [(1002.0, 1012.0), (1017.0, 1027.0)]
    by_sum = energy_per_inference(trace, windows, 200)
    by_counts = energy_per_inference(trace, windows, [100, 100])
    assert by_sum.total_j == by_counts.total_j
    assert by_sum.uncertainty_j == pytest.approx(by_counts.uncertainty_j)


@pytest.mark.parametrize(
    ("windows", "inferences"),
    [
        ([], 1),
        ([(1.0, 1.0)], 1),
        ([(2.0, 1.0)], 1),
        ([(1.0, math.nan)], 1),
        ([(1.0, 2.0)], 0),
        ([(1.0, 2.0)], [1, 1]),
        ([(1.0, 2.0)], [0]),
    ],
)
def test_nonsense_is_refused(windows: list[tuple[float, float]], inferences: int) -> None:
    with pytest.raises(ConfigError, match="energy: "):
        energy_per_inference(trace_of(lambda t: 5 + t), windows, inferences)


def test_integral_within_one_sampling_interval() -> None:
    times, values = np.array([0.0, 10.0]), np.array([0.0, 10.0])
    assert integrate(times, values, 4.0, 5.0) == pytest.approx(4.5)


def test_zero_samples_are_no_trace() -> None:
    with pytest.raises(DeviceError, match="0 samples; a trace needs at least 2"):
        Trace(np.array([]), np.array([]), {}, 0, "test", 0.1)


def test_time_that_stands_still_is_no_trace() -> None:
    with pytest.raises(DeviceError, match="do not grow"):
        Trace(np.array([1.0, 1.0]), np.array([1.0, 1.0]), {}, 1, "test", 0.1)
