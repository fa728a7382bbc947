"""A record's numbers from raw samples: percentiles with intervals, throughput, speedup."""

from __future__ import annotations

import math
from typing import Any, Mapping

import numpy as np

from benchmarks.statistics.intervals import (
    compare_means,
    compare_percentiles,
    mean_interval,
    percentile_interval,
)
from benchmarks.timing.latency import Latency
from benchmarks.timing.samples import Samples

KEPT = 100_000  # raw samples in a record; of more, each k-th
INTERVALS = (50.0, 90.0, 99.0)


def latency_figures(latency: Latency, percent: float | None) -> dict[str, Any]:
    """``latency_ms`` of a record; ``percent`` is the one that the scenario is judged by."""
    made = latency.to_dict()
    samples = samples_of(latency)
    intervals = {
        f"p{each:g}": list(percentile_interval(samples, each))
        for each in INTERVALS
        if latency.percentile(each) is not None
    }
    stopped = latency.early_stopping(percent) if percent is not None else None
    kept = samples.thinned(KEPT)
    return {
        **made,
        "interval95": intervals.get("p50"),
        "intervals95": intervals,
        "early_stopping": None if stopped is None else stopped.to_dict(),
        "samples": [round(float(ms), 6) for ms in kept.values],
        "samples_every": math.ceil(latency.n / KEPT),
        "round_lengths": [int(length) for length in kept.round_lengths],
        "opening_rounds": [int(rounds) for rounds in kept.opening_rounds],
    }


def throughput_figures(latency: Latency, samples_per_query: int) -> dict[str, Any]:
    """Samples per second while the session was called without a pause."""
    low_ms, high_ms = mean_interval(samples_of(latency))
    per_s = 1e3 * samples_per_query
    return {
        "throughput_per_s": per_s / latency.mean_ms,
        "throughput_interval95": [per_s / high_ms, per_s / max(low_ms, 1e-9)],
    }


def speedup_figures(taken: Mapping[str, Latency], *, paired: bool) -> dict[str, Any] | None:
    """How much faster the student is than the teacher, ``None`` unless both were measured."""
    if set(taken) != {"teacher", "student"} or not all(each.n for each in taken.values()):
        return None
    teacher, student = samples_of(taken["teacher"]), samples_of(taken["student"])
    made: dict[str, Any] = {}
    for percent in (50.0, 90.0, 99.0):
        stated = all(each.percentile(percent) is not None for each in taken.values())
        compared = compare_percentiles(teacher, student, percent, paired=paired) if stated else None
        prefix = "" if percent == 50 else f"p{percent:g}_"
        made[f"p{percent:g}"] = None if compared is None else compared.ratio
        made[f"{prefix}interval95"] = None if compared is None else list(compared.ratio_interval)
        if percent == 50:
            made["difference_ms"] = None if compared is None else compared.difference
            made["difference_interval95"] = (
                None if compared is None else list(compared.difference_interval)
            )
    made["throughput"] = made["throughput_interval95"] = None
    if paired:  # called without a pause: samples per second are one over the mean
        throughput = compare_means(teacher, student, paired=True)
        made["throughput"] = throughput.ratio
        made["throughput_interval95"] = list(throughput.ratio_interval)
    return made


def samples_of(latency: Latency) -> Samples:
    return Samples.of(np.asarray(latency.samples_ms), latency.round_lengths, latency.opening_rounds)


def samples_of_record(latency_ms: Mapping[str, Any]) -> Samples:
    """The samples that a record kept."""
    return Samples.of(
        latency_ms["samples"],
        latency_ms.get("round_lengths") or (),
        latency_ms.get("opening_rounds") or (),
    )
