"""Is a sequence of latencies what it claims to be?  Drift, outliers, autocorrelation, scatter."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.statistics.correlation import autocorrelation, effective_number
from benchmarks.timing.latency import NOISY_COV, Latency

DRIFT = 0.025  # of the median, from the first to the last third
FAR = 3.0  # interquartile ranges beyond the quartiles (Tukey 1977): "far out"
MANY_FAR = 0.01
FEW = 100  # independent samples
_MOST = 100_000


def check_latency(name: str, latency: Latency) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """``trend``, ``outliers`` and ``autocorrelation`` of one session, and what to be warned of."""
    if latency.n < 20:
        reason = {"why": f"{latency.n} samples are too few to tell"}
        return dict.fromkeys(("trend", "outliers", "autocorrelation"), reason), [
            f"{name}: {reason['why']} a trend or outliers"
        ]
    checks = {
        "trend": trend(latency),
        "outliers": outliers(latency),
        "autocorrelation": correlation(latency),
    }
    warnings = []
    if latency.noisy:
        warnings.append(
            f"{name}: latencies scatter by {latency.cov:.1%} (more than {NOISY_COV:.1%}): "
            "small differences mean nothing without their interval"
        )
    if checks["trend"]["drifts"]:
        warnings.append(
            f"{name}: the median moved by {checks['trend']['change']:+.1%} during the run: "
            "warm up longer, or fix the clocks"
        )
    if checks["outliers"]["share"] > MANY_FAR:
        warnings.append(
            f"{name}: {checks['outliers']['share']:.1%} of the calls took over "
            f"{checks['outliers']['beyond_ms']:.3g} ms, up to {checks['outliers']['worst_ms']:.3g}: "
            "something else runs on this machine"
        )
    if checks["autocorrelation"]["independent"] < FEW:
        warnings.append(
            f"{name}: {latency.n} samples tell as much as "
            f"{checks['autocorrelation']['independent']:.0f} independent ones: measure longer"
        )
    return checks, warnings


def trend(latency: Latency) -> dict[str, Any]:
    """Median of the last third against the first, and whether that is more than chance.

    Chance is judged by Spearman's rank correlation of latency and time over 100 stretches of the
    run, each by its median.
    """
    samples = np.asarray(latency.samples_ms, np.float64)
    medians = np.array(
        [np.median(part) for part in np.array_split(samples, min(100, len(samples)))]
    )
    third = len(samples) // 3
    change = float(np.median(samples[-third:]) / np.median(samples[:third]) - 1)
    ranks = np.argsort(np.argsort(medians)).astype(np.float64)
    varies = medians.max() > medians.min()
    rho = float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) if varies else 0.0
    significant = abs(rho) * np.sqrt(len(ranks) - 1) > 3
    return {"change": change, "rank_correlation": rho,
            "drifts": bool(significant and abs(change) > DRIFT)}  # fmt: skip


def outliers(latency: Latency) -> dict[str, Any]:
    """Share of calls that lie far out, beyond what, and the worst one."""
    low, high = (float(np.quantile(latency.sorted_ms, q)) for q in (0.25, 0.75))
    beyond = high + FAR * (high - low)
    share = float(np.mean(latency.sorted_ms > beyond))
    return {"share": share, "beyond_ms": beyond, "worst_ms": float(latency.sorted_ms[-1])}


def correlation(latency: Latency) -> dict[str, Any]:
    """Autocorrelation of being above the median, and how many independent samples there are."""
    samples = np.asarray(latency.samples_ms, np.float64)
    series = (samples > np.median(samples)).astype(np.float64)[:_MOST]
    independent = effective_number(series) * len(samples) / len(series)
    return {"lag1": float(autocorrelation(series, 1)[0]), "independent": independent}
