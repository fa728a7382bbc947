"""What a query is, how long to measure and what is stated, by MLPerf's definitions.

* single-stream: one sample, the next query when the previous one ended; the 90th percentile
* multi-stream: eight samples, likewise; the 99th percentile
* offline: everything is there at once and runs in large batches; samples per second
* server: queries of one sample arrive at random, see ``benchmarks.timing.server``; the 99th percentile of
  the time from arrival to answer

In the first three, teacher and student take turns, which MLPerf, having one system, does not know:
offline is a stream of batches instead of one query of all samples.

Profile ``mlperf`` measures as long as its rules ask: 600 s, and the queries from which the percentile
is known to half a percent with 99 % confidence; or 24,576 samples offline.
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from benchmarks.records.request import PROFILES, Request
from benchmarks.timing.interleaving import Floors


@dataclass(frozen=True)
class Scenario:
    """``samples_per_query`` by default; ``percentile`` is what the scenario is judged by, if any."""

    name: str
    samples_per_query: int
    percentile: float | None
    mlperf_queries: int  # samples, offline


OPENINGS = 10
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("single-stream", 1, 90.0, 23_886),
        Scenario("multi-stream", 8, 99.0, 262_742),
        Scenario("offline", 32, None, 24_576),
        Scenario("server", 1, 99.0, 262_742),
    )
}
_PROFILE_FLOORS = {
    "quick": Floors(at_least_s=2.0, at_least=64, warm_up_s=0.2, warm_up=5),
    "standard": Floors(at_least_s=10.0, at_least=662, warm_up_s=1.0, warm_up=20),
    "mlperf": Floors(at_least_s=600.0, at_least=1, warm_up_s=10.0, warm_up=50, block_s=0.1),
}
assert set(_PROFILE_FLOORS) == set(PROFILES)


def samples_per_query(request: Request) -> int:
    """As asked, or the scenario's own."""
    return request.batch or SCENARIOS[request.scenario].samples_per_query


def floors(request: Request) -> Floors:
    """How long and how often to measure, per model."""
    base = _PROFILE_FLOORS[request.profile]
    scenario = SCENARIOS[request.scenario]
    queries = base.at_least
    if request.profile == "mlperf":
        queries = scenario.mlperf_queries
        if request.scenario == "offline":
            queries = math.ceil(queries / samples_per_query(request))
    elif scenario.percentile is None:
        queries = min(queries, 20)
    return dataclasses.replace(
        base,
        at_least_s=request.duration_s or base.at_least_s,
        at_least=request.queries or queries,
    )


def openings(request: Request, opening_s: float) -> int:
    """How often models are opened anew: ten times, fewer where that would take half of the run."""
    if request.scenario == "server":
        return 1
    planned_s = floors(request).at_least_s * len(request.models)
    return int(min(OPENINGS, max(1.0, 0.5 * planned_s / max(opening_s, 1e-9))))


def share(whole: Floors, place: int, openings: int) -> Floors:
    """Floors of one opening.  The first is warmed up in full, the machine is warm for the others."""
    return dataclasses.replace(
        whole,
        at_least_s=whole.at_least_s / openings,
        at_least=math.ceil(whole.at_least / openings),
        warm_up_s=whole.warm_up_s if place == 0 else whole.warm_up_s / openings,
    )
