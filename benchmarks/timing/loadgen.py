"""MLPerf's own LoadGen over the same call, as a cross-check of our loop (extra ``loadgen``).

LoadGen decides when a query is issued, keeps the time and computes its percentiles; we only answer.  It
needs to be told what latency to expect, or calls the run invalid.
https://github.com/mlcommons/inference/tree/master/loadgen
"""

from __future__ import annotations

import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing.interleaving import Call, Floors, interleave, nothing
from benchmarks.timing.latency import Latency
from deploy.errors import DeviceError, MissingDependency

_SUMMARY = "mlperf_log_summary.txt"
_WANTED = {
    "p50": r"^50\.00 percentile latency \(ns\)\s*:\s*(\d+)",
    "p90": r"^90\.00 percentile latency \(ns\)\s*:\s*(\d+)",
    "p99": r"^99\.00 percentile latency \(ns\)\s*:\s*(\d+)",
    "mean": r"^Mean latency \(ns\)\s*:\s*(\d+)",
    "p90_early_stopping": r"Early stopping 90\.0th percentile estimate:\s*(\d+)",
}


def single_stream(
    call: Call, *, expected_ms: float, at_least_s: float, at_least: int
) -> dict[str, Any]:
    """What LoadGen states about ``call`` in its single-stream scenario, latencies in ms.

    ``expected_ms`` is a latency that was measured before.  Fewer samples than LoadGen takes for an
    early-stopping estimate give ``None`` for it.

    Raises:
        MissingDependency: LoadGen is not installed.
        DeviceError: It wrote no summary.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise MissingDependency(
            "loadgen: the cross-check needs mlcommons-loadgen, which is not installed; "
            "install it with: pip install 'compress-deploy[loadgen]'"
        ) from error
    errors: list[BaseException] = []

    def issue(samples: Any) -> None:
        for sample in samples:
            if not errors:
                try:
                    call()
                except BaseException as error:  # must not cross LoadGen's frames
                    errors.append(error)
            mlperf_loadgen.QuerySamplesComplete(
                [mlperf_loadgen.QuerySampleResponse(sample.id, 0, 0)]
            )

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = mlperf_loadgen.TestScenario.SingleStream
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.single_stream_expected_latency_ns = max(1, round(expected_ms * 1e6))
    settings.min_duration_ms = round(at_least_s * 1e3)
    settings.min_query_count = at_least
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        output = mlperf_loadgen.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs = mlperf_loadgen.LogSettings()
        logs.log_output, logs.enable_trace = output, False
        system = mlperf_loadgen.ConstructSUT(issue, _nothing)
        library = mlperf_loadgen.ConstructQSL(1, 1, _ignore, _ignore)
        try:
            mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs)
        finally:
            mlperf_loadgen.DestroyQSL(library)
            mlperf_loadgen.DestroySUT(system)
        if errors:
            raise errors[0]
        return read_summary(Path(folder) / _SUMMARY)


def cross_check(
    call: Call, *, rounds: int = 3, at_least_s: float = 1.0, at_least: int = 100
) -> dict[str, Any]:
    """Our p90 and LoadGen's of the same call, taken in turns, and whether they agree.

    LoadGen calls into Python for every query; what that takes is measured with an empty call and
    taken off.  The two agree when their medians differ by no more than the noise: the larger
    of the spreads of either over the rounds, and of 2 %.
    """
    floors = Floors(at_least_s=at_least_s, at_least=at_least, warm_up_s=0.1)
    ours, theirs, records = [], [], []
    for _ in range(rounds):
        latency = Latency(interleave({"call": call}, floors).times_ms("call"))
        ours.append(float(latency.percentile(90) or latency.sorted_ms[-1]))
        records.append(
            single_stream(
                call, expected_ms=latency.mean_ms, at_least_s=at_least_s, at_least=at_least
            )
        )
        theirs.append(records[-1]["p90"])
    empty = single_stream(nothing, expected_ms=0.001, at_least_s=0.2, at_least=1000)
    difference = statistics.median(theirs) - empty["p50"] - statistics.median(ours)
    noise = max(max(ours) - min(ours), max(theirs) - min(theirs), 0.02 * statistics.median(ours))
    return {
        "p90_ms": statistics.median(ours),
        "loadgen_p90_ms": statistics.median(theirs),
        "loadgen_overhead_ms": empty["p50"],
        "difference_ms": difference,
        "noise_ms": noise,
        "agree": bool(abs(difference) <= noise),
        "rounds": {"p90_ms": ours, "loadgen_p90_ms": theirs},
        "loadgen": records,
    }


def read_summary(path: Path) -> dict[str, Any]:
    """The numbers of LoadGen's summary, in ms, whether it calls them valid, and the query count.

    Raises:
        DeviceError: There is no summary, or it states no percentile.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DeviceError(
            f"loadgen: it wrote no summary ({error.strerror}); run without it"
        ) from error
    found = {name: re.search(form, text, re.MULTILINE) for name, form in _WANTED.items()}
    if found["p90"] is None:
        raise DeviceError(f"loadgen: its summary {path.name} states no p90; run without it")
    count = re.search(r"Processed at least \d+ queries \((\d+)\)", text)
    made: dict[str, Any] = {
        name: None if match is None else int(match.group(1)) / 1e6 for name, match in found.items()
    }
    made["valid"] = "Result is : VALID" in text
    made["n"] = None if count is None else int(count.group(1))
    return made


def _nothing() -> None:
    """Called by LoadGen when no more queries come."""


def _ignore(_: Any) -> None:
    """Called by LoadGen to load and unload samples, which the call already holds."""
