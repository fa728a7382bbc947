"""Records that were measured alike are compared; others are refused, by name."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.records.compare import compare_records as compare_in_full
from benchmarks.records.compare import different_modes
from benchmarks.records.record import read_record
from deploy.errors import ConfigError, DataError

NAMES = ("a.json", "b.json")
compare_records = functools.partial(compare_in_full, replicates=100)


@pytest.fixture
def record() -> dict[str, Any]:
    return read_record(Path(__file__).with_name("example_record.json"))


def scaled(record: dict[str, Any], **factors: float) -> dict[str, Any]:
    """The record of another run: shuffled openings, latencies times a factor."""
    made = copy.deepcopy(record)
    for name, factor in factors.items():
        model = made["models"][name]
        latency = model["latency_ms"]
        latency["samples"] = [ms * factor for ms in latency["samples"]]
        for key in ("p50", "p90", "p99"):
            latency[key] = latency[key] and latency[key] * factor
        model["throughput_per_s"] /= factor
    made["speedup"]["p50"] *= factors.get("teacher", 1) / factors.get("student", 1)
    return made


def found(compared: Any, model: str, what: str) -> Any:
    return next(each for each in compared.differences if (each.model, each.what) == (model, what))


def test_a_record_against_itself(record: dict[str, Any]) -> None:
    compared = compare_records(record, record, NAMES)
    assert [each.differs for each in compared.differences] == [False] * len(compared.differences)
    p50 = found(compared, "student", "p50")
    assert p50.ratio == 1.0
    assert p50.interval[0] < 1 < p50.interval[1]
    assert p50.difference_interval[0] < 0 < p50.difference_interval[1]
    assert compared.allowed == {}


def test_a_slower_student_is_found_and_a_slower_machine_is_not_its_fault(
    record: dict[str, Any],
) -> None:
    slower = compare_records(record, scaled(record, student=1.5), NAMES)
    assert found(slower, "student", "p50").differs
    assert found(slower, "student", "p50").ratio == pytest.approx(1.5)
    assert found(slower, "student", "throughput").ratio == pytest.approx(1 / 1.5)
    assert found(slower, "student", "speedup").ratio == pytest.approx(1 / 1.5)
    assert found(slower, "student", "speedup").differs
    assert not found(slower, "teacher", "p50").differs
    machine = compare_records(record, scaled(record, student=1.5, teacher=1.5), NAMES)
    assert found(machine, "student", "p50").differs
    assert not found(machine, "student", "speedup").differs


def test_throughput_interval_is_that_of_the_ratio(record: dict[str, Any]) -> None:
    compared = compare_records(record, scaled(record, teacher=2.0), NAMES)
    each = found(compared, "teacher", "throughput")
    assert each.interval[0] < 0.5 < each.interval[1]


@pytest.mark.parametrize(
    ("mode", "value"),
    [
        ("threads", 2),
        ("batch", 8),
        ("copies_included", False),
        ("cuda_graph", True),
        ("spin", False),
        ("power_mode", "MAXN"),
        ("provider", "ort-cuda"),
        ("scenario", "offline"),
        ("profile", "mlperf"),
        ("affinity", [1]),
        ("target", "tensorrt"),
    ],
)
def test_a_mode_that_differs_is_refused_by_name(
    record: dict[str, Any], mode: str, value: Any
) -> None:
    other = copy.deepcopy(record)
    other["modes"][mode] = value
    with pytest.raises(ConfigError, match=rf"not measured alike: {mode} \(") as refused:
        compare_records(record, other, NAMES)
    assert "\n" not in str(refused.value)
    assert set(compare_records(record, other, NAMES, [mode]).allowed) == {mode}
    assert set(compare_records(record, other, NAMES, ["all"]).allowed) == {mode}


def test_every_difference_is_named(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    other["modes"].update(threads=4, spin=False)
    other["modes"]["versions"] = {"onnxruntime": "0.1", "cuda": "13"}
    other["environment"]["cpu_model"] = "Slow"
    assert set(different_modes(record, other)) == {
        "threads", "spin", "versions.onnxruntime", "versions.cuda", "cpu_model",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"threads \(1 against 4\).*versions.cuda \(not known"):
        compare_records(record, other, NAMES)
    with pytest.raises(ConfigError, match="cpu_model"):
        compare_records(record, other, NAMES, ["threads", "spin", "versions"])
    allowed = compare_records(record, other, NAMES, ["threads", "spin", "versions", "cpu_model"])
    assert allowed.allowed["threads"] == (1, 4)
    assert allowed.to_dict()["allowed"]["threads"] == [1, 4]


def test_an_unknown_mode_cannot_be_allowed(record: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"unknown thread; choose from"):
        compare_records(record, record, NAMES, ["thread"])


@pytest.mark.parametrize("place", [0, 1])
def test_partial_and_invalid_records_are_refused(record: dict[str, Any], place: int) -> None:
    for status, why in (("partial", "partial record"), ("invalid", "too hot")):
        bad = {**record, "status": status, "invalid_because": ["too hot"]}
        pair = [record, record]
        pair[place] = bad
        with pytest.raises(DataError, match=rf"{NAMES[place]}: an? {status}.*|{why}"):
            compare_records(pair[0], pair[1], NAMES, ["all"])


def test_nothing_in_common(record: dict[str, Any]) -> None:
    teacher = {**record, "models": {"teacher": record["models"]["teacher"]}}
    student = {**record, "models": {"student": record["models"]["student"]}}
    with pytest.raises(DataError, match="a model in common"):
        compare_records(teacher, student, NAMES)
    assert {each.model for each in compare_records(record, student, NAMES).differences} == {
        "student"
    }


def test_another_teacher_gives_no_gain(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    other["models"]["teacher"]["sha256"] = "0" * 64
    names = {each.what for each in compare_records(record, other, NAMES).differences}
    assert "speedup" not in names


def test_energy(record: dict[str, Any]) -> None:
    first, second = copy.deepcopy(record), copy.deepcopy(record)
    first["models"]["student"]["energy"] = {"total_j": 0.010, "uncertainty_j": 0.0002,
                                            "net_j": 0.004, "net_uncertainty_j": None}  # fmt: skip
    second["models"]["student"]["energy"] = {"total_j": 0.008, "uncertainty_j": 0.0002,
                                             "net_j": 0.003, "net_uncertainty_j": 0.1}  # fmt: skip
    compared = compare_records(first, second, NAMES)
    total = found(compared, "student", "energy")
    assert (total.ratio, total.differs) == (pytest.approx(0.8), True)
    half = 1.96 * np.hypot(0.0002, 0.0002)
    assert total.difference_interval == pytest.approx((-0.002 - half, -0.002 + half))
    assert found(compared, "student", "net energy").differs is None
