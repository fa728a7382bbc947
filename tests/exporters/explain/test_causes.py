"""Each cause is given where its numbers prove it, and not where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.explain.causes import REMEDIES, Facts, Kind, cause
from exporters.explain.machine_limits import Machine

# 10 GB/s, 0.5 us for a kernel, 1 us for a convolution, 100 and 50 GMAC/s.
MACHINE = Machine(1, ((1 << 20, 1e10), (1 << 26, 1e9)), 3.0, 0.5, 1.0, 1.0, 1e11, 5e10)
CONV = Facts(
    "conv", "Conv", "QLinearConv", 100.0, 0.5, 10**6, 1000, (32, 32), 1, integer=True
)  # 10 us at the peak, 0.1 us of copying


def kind(**changed: object) -> str:
    return cause(replace(CONV, **changed), MACHINE).kind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "changed"),
    [
        ("float leftover", {"float_reason": "no Q on its output", "integer": False}),
        ("reformat", {"kernel": "Transpose", "macs": 0}),
        ("reformat", {"inserted": True, "kernel": "Gather", "macs": 0}),
        ("launch-bound", {"time_us": 2.0, "macs": 1000}),
        ("launch-bound", {"time_us": 0.9, "macs": 0, "kernel": "Relu"}),
        ("memory-bound", {"bytes": 600_000, "macs": 10**6}),
        ("compute-bound", {"macs": 6 * 10**6}),
        ("compute-bound", {"time_us": 1.5, "macs": 10**5}),
        ("few inputs", {"channels": (3, 16), "first": True}),
        ("misaligned", {"channels": (3, 16)}),
        ("misaligned", {"channels": (32, 24)}),
        ("depthwise", {"channels": (1, 1), "groups": 32}),
        ("too small", {}),
        ("elementwise", {"macs": 0, "kernel": "QLinearAdd", "channels": None}),
    ],
)
def test_a_cause_for_its_numbers(wanted: str, changed: dict[str, object]) -> None:
    assert kind(**changed) == wanted


def test_a_width_of_eight_suits_float_and_not_int8() -> None:
    assert kind(channels=(8, 8), integer=False, kernel="Conv") == "too small"
    assert kind(channels=(8, 8)) == "misaligned"


def test_every_cause_has_a_remedy() -> None:
    assert set(REMEDIES) == set(get_args(Kind))


@pytest.mark.parametrize(
    ("size", "us"), [(1 << 20, 104.8576), (1 << 21, 2097.152), (1 << 30, None)]
)
def test_bandwidth_is_that_of_the_working_set(size: int, us: float | None) -> None:
    assert MACHINE.copy_us(size) == pytest.approx(1e6 * size / 1e9 if us is None else us)


@given(
    time_us=st.floats(0, 1e6), macs=st.integers(0, 10**12), size=st.integers(0, 10**9),
    integer=st.booleans(), groups=st.integers(1, 64), width=st.integers(1, 512),
)  # fmt: skip
def test_there_always_is_one(
    time_us: float, macs: int, size: int, integer: bool, groups: int, width: int
) -> None:
    facts = replace(
        CONV, time_us=time_us, macs=macs, bytes=size, integer=integer, groups=groups,
        channels=(width, width),
    )  # fmt: skip
    found = cause(facts, MACHINE)
    assert found.remedy and found.why
    if found.kind == "memory-bound":
        assert MACHINE.copy_us(size) >= 0.5 * time_us
    if found.kind == "compute-bound":
        assert 1e6 * macs / MACHINE.macs_per_s(integer) >= 0.5 * time_us
