"""What MLPerf asks for is what is measured."""

from __future__ import annotations

import pytest

from benchmarks.records.request import PROFILES, SCENARIOS, Request
from benchmarks.timing.scenarios import SCENARIOS as DEFINED
from benchmarks.timing.scenarios import floors, openings, samples_per_query, share


def asked(scenario: str, **settings: object) -> Request:
    load = {"target_qps": 10.0} if scenario == "server" else {}
    return Request(scenario=scenario, **{**load, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scenario", "samples", "percentile", "queries"),
    [
        ("single-stream", 1, 90, 23_886),
        ("multi-stream", 8, 99, 262_742),
        ("server", 1, 99, 262_742),
        ("offline", 32, None, 768),  # of 32 samples: 24,576
    ],
)
def test_mlperf(scenario: str, samples: int, percentile: float | None, queries: int) -> None:
    request = asked(scenario, profile="mlperf")
    assert samples_per_query(request) == samples
    assert DEFINED[scenario].percentile == percentile
    assert floors(request).at_least == queries
    assert floors(request).at_least_s == 600


def test_every_scenario_is_defined() -> None:
    assert set(DEFINED) == set(SCENARIOS)
    for profile in PROFILES:
        for scenario in SCENARIOS:
            assert floors(asked(scenario, profile=profile)).at_least >= 1


def test_what_is_asked_wins() -> None:
    request = asked("multi-stream", batch=3, duration_s=0.5, queries=7)
    assert samples_per_query(request) == 3
    assert (floors(request).at_least_s, floors(request).at_least) == (0.5, 7)


def test_a_standard_run_states_p99() -> None:
    assert floors(asked("single-stream")).at_least >= 662
    assert floors(asked("single-stream", profile="quick")).at_least >= 64


def test_shares_add_up() -> None:
    whole = floors(asked("single-stream"))
    parts = [share(whole, place, 10) for place in range(10)]
    assert sum(part.at_least_s for part in parts) == pytest.approx(whole.at_least_s)
    assert sum(part.at_least for part in parts) >= whole.at_least
    assert parts[0].warm_up_s == whole.warm_up_s > parts[1].warm_up_s > 0


@pytest.mark.parametrize(("opening_s", "times"), [(0.01, 10), (1.0, 10), (2.5, 4), (600.0, 1)])
def test_models_that_load_slowly_are_opened_less_often(opening_s: float, times: int) -> None:
    assert openings(asked("single-stream"), opening_s) == times
    assert openings(asked("server"), opening_s) == 1
