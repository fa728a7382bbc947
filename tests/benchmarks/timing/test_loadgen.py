"""MLPerf's LoadGen itself: its bound is ours, and its summary is read right."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.timing.loadgen import cross_check, read_summary, single_stream
from benchmarks.timing.percentiles import early_stopping
from deploy.errors import DeviceError, MissingDependency

SUMMARY = """Result is : VALID
Early Stopping Result:
 * Processed at least 64 queries (100).
 * Early stopping 90.0th percentile estimate: 10080205
Mean latency (ns)               : 5374426
50.00 percentile latency (ns)   : 5449923
90.00 percentile latency (ns)   : 9289889
99.00 percentile latency (ns)   : 10650011
"""


def test_summary(tmp_path: Path) -> None:
    path = tmp_path / "mlperf_log_summary.txt"
    path.write_text(SUMMARY)
    made = read_summary(path)
    assert made == {
        "p50": 5.449923, "p90": 9.289889, "p99": 10.650011, "mean": 5.374426,
        "p90_early_stopping": 10.080205, "valid": True, "n": 100,
    }  # fmt: skip
    path.write_text("Result is : INVALID\n90.00 percentile latency (ns) : 7\n")
    assert read_summary(path)["valid"] is False
    assert read_summary(path)["p90_early_stopping"] is None
    path.write_text("nothing")
    with pytest.raises(DeviceError, match="states no p90"):
        read_summary(path)
    with pytest.raises(DeviceError, match="wrote no summary"):
        read_summary(tmp_path / "absent.txt")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingDependency, match=r"compress-deploy\[loadgen\]"):
        single_stream(lambda: None, expected_ms=1, at_least_s=0.1, at_least=1)


def test_its_early_stopping_bound_is_ours() -> None:
    """Of 100 calls the longest six lie so far apart that no noise changes their order."""
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    took: list[float] = []

    def call() -> None:
        start = time.perf_counter()
        place = len(took)
        time.sleep(1e-4 if place % 16 else 0.01 + 0.002 * place / 16)
        took.append((time.perf_counter() - start) * 1e3)

    made = single_stream(call, expected_ms=1, at_least_s=0.001, at_least=100)
    ours = early_stopping(np.sort(took), 90)
    assert ours is not None
    assert made["n"] == len(took)
    nearest = int(np.abs(np.sort(took) - made["p90_early_stopping"]).argmin())
    assert nearest == len(took) - 1 - ours.discarded
    assert made["valid"]


def test_an_error_in_the_call_comes_out() -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")

    def call() -> None:
        raise DeviceError("the device is gone")

    with pytest.raises(DeviceError, match="the device is gone"):
        single_stream(call, expected_ms=1, at_least_s=0.001, at_least=10)


def test_the_cross_check_tells_both() -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    made = cross_check(lambda: sum(range(2000)), rounds=2, at_least_s=0.05, at_least=64)
    assert made["p90_ms"] > 0
    assert made["loadgen_p90_ms"] > made["loadgen_overhead_ms"] > 0
    assert made["noise_ms"] >= 0.02 * made["p90_ms"]
    assert made["agree"] == (abs(made["difference_ms"]) <= made["noise_ms"])
    assert len(made["rounds"]["p90_ms"]) == len(made["loadgen"]) == 2
