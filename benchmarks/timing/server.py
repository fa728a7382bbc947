"""The server scenario: queries arrive at random and wait for the one session that answers them.

Arrivals are a Poisson process: the times between them are exponential.  A latency counts from
arrival, not from when the session got to it, so a slow answer makes those behind it late; that is
what a user waits.  Arrivals do not wait for answers.

The highest load whose 99th percentile stays within a bound is searched by bisection over whole runs.
MLPerf judges the early-stopping bound of the percentile, and so do we.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping

import numpy as np

from benchmarks.records.request import Request
from benchmarks.timing.interleaving import Call, Clock, Floors, interleave
from benchmarks.timing.latency import Latency
from benchmarks.timing.percentiles import samples_needed
from benchmarks.timing.scenarios import floors as scenario_floors
from deploy.errors import ConfigError, DeviceError

PERCENT = 99.0
CLOSE = 0.05  # the search ends when the bracket is this narrow, relative to its upper end
# Sleeping wakes up late, by up to this; the rest is waited for in a loop.
_EARLY_S = 0.001


@dataclass(frozen=True)
class Load:
    """What an offered load gave: latencies from arrival in the order of arrival, and the rate."""

    offered_qps: float
    served_qps: float
    latency: Latency

    def holds(self, bound_ms: float) -> bool:
        """Whether the 99th percentile is within the bound, as far as these samples can tell."""
        stopped = self.latency.early_stopping(PERCENT)
        return stopped is not None and stopped.estimate <= bound_ms

    def to_dict(self) -> dict[str, Any]:
        stopped = self.latency.early_stopping(PERCENT)
        return {
            "offered_qps": self.offered_qps,
            "served_qps": self.served_qps,
            "n": self.latency.n,
            "p50": self.latency.p50,
            "p99": self.latency.p99,
            "p99_early_stopping": None if stopped is None else stopped.estimate,
        }


def serve(
    call: Call,
    qps: float,
    floors: Floors,
    rng: np.random.Generator,
    *,
    bound_ms: float | None = None,
    clock_ns: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[float], None] | None = None,
) -> Load:
    """Answer queries that arrive at ``qps`` on average until both floors hold.

    The floors are those of arrivals: their number and the time over which they come.  Once so many
    answers came later than ``bound_ms`` that the rest cannot save the percentile, the run ends.
    """
    if not 0 < qps < float("inf"):
        raise ConfigError(f"server: target_qps is {qps}; give a number above 0")
    latencies_ns: list[int] = []
    expected = max(floors.at_least, qps * floors.at_least_s)
    late_ns = float("inf") if bound_ms is None else bound_ms * 1e6
    most_late, late = 2 * (1 - PERCENT / 100) * expected, 0
    start = clock_ns()
    arrival, over = start, 0.0
    while over < 1:
        arrival += round(rng.exponential(1 / qps) * 1e9)
        _wait_until(arrival, clock_ns, sleep)
        call()
        end = clock_ns()
        latencies_ns.append(end - arrival)
        over = min((arrival - start) / 1e9 / floors.at_least_s, len(latencies_ns) / floors.at_least)
        if progress is not None and len(latencies_ns) % 16 == 0:
            progress(min(over, 1.0))
        late += end - arrival > late_ns
        if late > most_late:
            break
    seconds = max((clock_ns() - start) / 1e9, 1e-9)
    return Load(qps, len(latencies_ns) / seconds, Latency(np.array(latencies_ns) / 1e6))


def highest_load(
    run: Callable[[float], Load], bound_ms: float, fastest_qps: float
) -> tuple[Load, list[Load]]:
    """The highest load that keeps the bound, and every load that was tried.

    ``run`` tries one load; ``fastest_qps`` is what the session answers without a pause, above which
    no queue is stable.

    Raises:
        DeviceError: Even a hundredth of that is too much.
    """
    tried: list[Load] = []
    best: Load | None = None
    low, high = 0.0, fastest_qps
    while high - low > CLOSE * high and (best is not None or high > 0.01 * fastest_qps):
        load = run((low + high) / 2)
        tried.append(load)
        if load.holds(bound_ms):
            best, low = load, load.offered_qps
        else:
            high = load.offered_qps
    if best is None:
        raise DeviceError(
            f"server: a p99 of {bound_ms:g} ms is not kept even at {high:.3g} queries per second, "
            f"of {fastest_qps:.3g} that fit without a pause; give a longer bound"
        )
    return best, tried


def serve_all(
    calls: Mapping[str, Call],
    request: Request,
    served: dict[str, Load],
    tried: dict[str, list[dict[str, Any]]],
    *,
    clock_ns: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Offer load to each model: the one asked for, in turns; or search each one's highest.

    ``served`` gets what is reported of each model, ``tried`` every load that was offered.
    """
    floors = scenario_floors(request)
    floors = dataclasses.replace(floors, at_least=max(floors.at_least, samples_needed(PERCENT)))
    rng = np.random.default_rng(request.seed)
    say = progress or (lambda fraction: None)
    warmed = interleave(
        calls, dataclasses.replace(floors, at_least_s=0.2, at_least=20), clock_ns=clock_ns
    )
    options: dict[str, Any] = {"clock_ns": clock_ns, "sleep": sleep}
    if request.target_qps is not None:
        _in_turns(calls, request.target_qps, floors, rng, served, say, options)
    for name, call in calls.items() if request.bound_ms is not None else ():
        bound_ms = float(request.bound_ms or 0)

        def run(qps: float, call: Call = call, bound_ms: float = bound_ms) -> Load:
            return serve(call, qps, floors, rng, bound_ms=bound_ms, **options)

        fastest = 1e3 / float(np.median(warmed.times_ms(name)))
        served[name], loads = highest_load(run, bound_ms, fastest)
        tried[name] = [load.to_dict() for load in loads]
        say((list(calls).index(name) + 1) / len(calls))


def _in_turns(
    calls: Mapping[str, Call],
    qps: float,
    floors: Floors,
    rng: np.random.Generator,
    served: dict[str, Load],
    say: Callable[[float], None],
    options: Mapping[str, Any],
) -> None:
    """Two halves for each, the second time in reverse order."""
    half = dataclasses.replace(
        floors, at_least_s=floors.at_least_s / 2, at_least=-(-floors.at_least // 2)
    )
    order = [*calls, *reversed(list(calls))]
    for place, name in enumerate(order):

        def part(fraction: float, place: int = place) -> None:
            say((place + fraction) / len(order))

        load = serve(calls[name], qps, half, rng, progress=part, **options)
        served[name] = _joined(served[name], load) if name in served else load


def _joined(one: Load, other: Load) -> Load:
    samples = np.concatenate([one.latency.samples_ms, other.latency.samples_ms])
    seconds = sum(load.latency.n / load.served_qps for load in (one, other))
    return Load(one.offered_qps, len(samples) / seconds, Latency(samples))


def _wait_until(moment: int, clock_ns: Clock, sleep: Callable[[float], None]) -> None:
    left_s = (moment - clock_ns()) / 1e9
    if left_s > _EARLY_S:
        sleep(left_s - _EARLY_S)
    while clock_ns() < moment:
        pass
