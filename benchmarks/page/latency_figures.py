"""How latencies are distributed, teacher and student on one axis.

Raw samples are drawn as a histogram and as the share of calls that took at most so long; of many samples
the curve shows order statistics that were really measured, and percentiles are the record's own.  Where only
percentiles are known, those are drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, Mapping, Sequence

from benchmarks.page import numbers
from benchmarks.page.blocks import FULL, HEIGHT, NARROW, WIDE, Figure, Key, key
from benchmarks.page.charts.plot import Axis, Plot, Series
from benchmarks.page.charts.scale import limits, usable
from benchmarks.page.charts.style import STUDENT, TEACHER, Style

STYLES: Mapping[str, Style] = {"teacher": TEACHER, "student": STUDENT}
PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9")
_MARKED = ("p50", "p90", "p99")
_BINS = 64
_LOG_FROM = 3.0  # a span of more than this factor gets a log axis
_SHOWN, _BEYOND = 0.99, 1.6  # up to so many times p99; rarer outliers would squeeze everything else


def latency_figures(models: Mapping[str, Any]) -> list[Figure]:
    """``models`` holds ``latency_ms`` by model, with ``samples`` or only percentiles, in ms."""
    samples = {
        who: sorted(usable(_samples(models[who]), log=True))
        for who in STYLES
        if who in models and _samples(models[who])
    }
    samples = {who: values for who, values in samples.items() if values}
    return _distributions(samples, models) if samples else _percentiles(models)


def thinned(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """At most 301 (value, percent of values at or below it) of sorted values, the ends included.

    >>> thinned([1.0, 2.0])
    [(1.0, 50.0), (2.0, 100.0)]
    """
    n = len(ordered)
    if n <= 301:
        picked = list(range(n))
    else:
        shares = [i / 200 * 0.9 for i in range(201)] + [0.9 + i / 1000 for i in range(1, 101)]
        picked = sorted({min(n - 1, int(share * (n - 1) + 0.5)) for share in shares})
    return [(ordered[i], 100.0 * (i + 1) / n) for i in picked]


def _samples(model: Any) -> Sequence[Any]:
    found = model.get("latency_ms") if isinstance(model, dict) else None
    values = found.get("samples") if isinstance(found, dict) else None
    return (
        [numbers.known({"it": value}, "it") for value in values] if isinstance(values, list) else []
    )


def _distributions(
    samples: Mapping[str, Sequence[float]], models: Mapping[str, Any]
) -> list[Figure]:
    low = min(values[0] for values in samples.values())
    usual = max(values[math.ceil(_SHOWN * (len(values) - 1))] for values in samples.values())
    high = min(usual * _BEYOND, max(values[-1] for values in samples.values()))
    log = high > low * _LOG_FROM
    low, high = limits([low, high], log=log, pad=0.03, within=(0, math.inf))
    beyond = sum(len(values) - bisect_right(values, high) for values in samples.values())
    axis = Axis("latency of a call, ms", log=log, low=low, high=high)
    counts = ", ".join(
        f"{who} n{numbers.THIN}={numbers.THIN}{numbers.grouped(len(values))}{_kept(models[who])}"
        for who, values in samples.items()
    )
    caption = f"{counts}."
    if beyond:
        plural = "calls lie" if beyond > 1 else "call lies"
        caption += f" {numbers.grouped(beyond)} slower {plural} right of the axis."
    histogram = Plot(
        "Histogram of latencies",
        f"Share of calls by latency. {caption}",
        axis,
        Axis("share of calls, %", zero=True),
        [
            Series(who, _histogram(values, low, high, log), STYLES[who], "area")
            for who, values in samples.items()
        ],
    )
    lines = [
        Series(
            who,
            [point for point in thinned(values) if point[0] <= high],
            STYLES[who],
            "step",
        )
        for who, values in samples.items()
    ]
    stated = [_stated(who, models[who]) for who in samples]
    ecdf = Plot(
        "Cumulative distribution of latencies",
        "; ".join(tip for one in stated for tip in one.tips),
        axis,
        Axis(
            "calls at most as slow, %",
            low=0,
            high=110,
            ticks=[(float(share), str(share)) for share in (0, 25, 50, 75, 100)],
        ),
        [*lines, *stated],
    )
    return [
        _drawn(histogram, caption, _legend(samples)),
        _drawn(ecdf, "Marked: the median, the 90th and the 99th percentile.", _legend(samples)),
    ]


def _kept(model: Mapping[str, Any]) -> str:
    every = numbers.known(model, "latency_ms", "samples_every")
    return f" (each {every:.0f}th call kept)" if every is not None and every > 1 else ""


def _stated(who: str, model: Mapping[str, Any]) -> Series:
    """The percentiles that are stated, on the curve."""
    found = [(name, numbers.known(model, "latency_ms", name)) for name in _MARKED]
    there = [(name, value) for name, value in found if value is not None]
    return Series(
        who,
        [(value, float(name[1:])) for name, value in there],
        STYLES[who],
        "scatter",
        [f"{who} {name} {numbers.milliseconds(value)}" for name, value in there],
        [f"{name} {numbers.digits(value)}" for name, value in there],
    )


def _histogram(
    ordered: Sequence[float], low: float, high: float, log: bool
) -> list[tuple[float, float]]:
    """Steps: the left edge of each bin and the percentage of values in it; ends at 0."""
    if log:
        edges = [low * (high / low) ** (i / _BINS) for i in range(_BINS)]
    else:
        edges = [low + (high - low) * i / _BINS for i in range(_BINS)]
    below = [bisect_right(ordered, edge) for edge in [*edges[1:], high]]
    start = [0, *below[:-1]]
    heights = [100.0 * (after - before) / len(ordered) for before, after in zip(start, below)]
    filled = [i for i, height in enumerate(heights) if height]
    first, last = filled[0], filled[-1] + 1
    ends = [*edges, high]
    steps = list(zip(edges[first:last], heights[first:last]))
    return [*steps, (ends[last], 0.0)]


def _percentiles(models: Mapping[str, Any]) -> list[Figure]:
    series = []
    for who, style in STYLES.items():
        found = [(name, numbers.known(models.get(who), "latency_ms", name)) for name in PERCENTILES]
        there = [(name, value) for name, value in found if value is not None]
        if there:
            tips = [f"{who} {name} {numbers.milliseconds(value)}" for name, value in there]
            series.append(
                Series(who, [(_nines(name), value) for name, value in there], style, "line", tips,
                       dots=True)
            )  # fmt: skip
    if not series:
        return []
    values = [y for one in series for _, y in one.points if y is not None]
    plot = Plot(
        "Percentiles of latency",
        "; ".join(tip for one in series for tip in one.tips),
        Axis("percentile of calls", ticks=[(_nines(name), name) for name in PERCENTILES]),
        Axis("latency, ms", log=max(values) > min(values) * _LOG_FROM, zero=True),
        series,
    )
    caption = (
        "A run folder keeps percentiles, not each call; "
        "compress-deploy bench writes a record with the calls themselves."
    )
    keys = _legend({one.name: one for one in series})
    return [Figure(plot.title, plot.svg(FULL, 260), plot.svg(NARROW, 240), caption, keys)]


def _nines(name: str) -> float:
    """Where a percentile lies on an axis that gives each further nine the same room."""
    return -math.log10(1 - float(name[1:]) / 100)


def _legend(shown: Mapping[str, Any]) -> list[Key]:
    return [key(who, STYLES[who], dot=True) for who in shown]


def _drawn(plot: Plot, caption: str, legend: Sequence[Key]) -> Figure:
    return Figure(plot.title, plot.svg(WIDE, HEIGHT), plot.svg(NARROW, HEIGHT), caption, legend)
