"""Recordings: columns and units, clocks, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.energy.per_inference import energy_per_inference
from deploy.errors import DeviceError
from deploy.power.finding import find_meter
from deploy.power.recorded import RecordedMeter


def recording(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "power.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "time_s,power_w\n10,5\n11,6\n",
        "time_ms,power_mw\n10000,5000\n11000,6000\n",
        "# analyser 7\ntime_s,voltage_v,current_a\n10,5,1\n11,5,1.2\n",
    ],
)
def test_units(tmp_path: Path, text: str) -> None:
    trace = RecordedMeter(recording(tmp_path, text)).trace()
    assert trace.time_s.tolist() == [10.0, 11.0]
    assert trace.power_w == pytest.approx([5.0, 6.0])


def test_rails(tmp_path: Path) -> None:
    path = recording(tmp_path, "time_s,power_w,gpu_mw,cpu_w,note\n1,5,3000,1,7\n2,6,3000,2,7\n")
    trace = RecordedMeter(path).trace()
    assert {name: rail.tolist() for name, rail in trace.rails.items()} == {
        "gpu": [3.0, 3.0],
        "cpu": [1.0, 2.0],
    }


def test_an_analysers_clock_is_moved_onto_the_runs(tmp_path: Path) -> None:
    rows = "\n".join(f"{1_795_000_100 + i / 10:.1f},{5 + i % 2}" for i in range(300))
    path = recording(tmp_path, f"unix_s,power_w\n{rows}\n")
    trace = RecordedMeter(path, unix_minus_monotonic_s=1_795_000_000.0).trace()
    assert trace.time_s[0] == pytest.approx(100.0)
    energy = energy_per_inference(trace, [(105.0, 125.0)], 100)
    assert energy.total_j == pytest.approx(5.5 * 20 / 100, rel=0.01)


def test_an_analyser_that_writes_while_the_model_runs(tmp_path: Path) -> None:
    path = recording(tmp_path, "time_s,power_w\n1,5\n2,5\n")
    meter = RecordedMeter(path)
    meter.start()
    with path.open("a") as file:
        file.write("3,6\n4,7\n5,")  # the last line is on its way
    assert meter.stop().power_w.tolist() == [5.0, 5.0, 6.0, 7.0]


def test_found_by_name(tmp_path: Path) -> None:
    path = recording(tmp_path, "time_s,power_w\n1,5\n2,6\n")
    assert find_meter(tmp_path, wanted=f"recorded:{path}").name == "recorded"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "0 samples; a recording needs 2"),
        ("time_s,power_w\n", "0 samples"),
        ("time_s,power_w\n1,5\n", "1 samples"),
        ("time_s,power_w\n1,5\n2,high\n", r"line 3 holds \['2', 'high'\], not numbers"),
        ("time_s,power_w\n1,5\n2,nan\n", "line 3"),
        ("time_s,power_w\n1,5\n2\n", r"expected \['time_s', 'power_w'\]"),
        ("time_s,power_w\n2,5\n1,6\n", "time stamps do not grow"),
        ("when,power_w\n1,5\n2,6\n", r"none of its columns \['when', 'power_w'\] is time_s"),
        ("time_s,amount\n1,5\n2,6\n", "is power_w or power_mw; rename one"),
    ],
)
def test_files_that_are_no_recording(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason) as caught:
        RecordedMeter(recording(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        RecordedMeter(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeviceError, match="it is no text"):
        RecordedMeter(tmp_path / "binary.csv")
