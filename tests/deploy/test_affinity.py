"""Pinning a thread, and giving it its processors back."""

from __future__ import annotations

import os

import pytest

from deploy.errors import DeviceError
from deploy.sessions.affinity import pinned

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="this system cannot pin threads"
)


def test_pinned_and_released() -> None:
    before = os.sched_getaffinity(0)
    processor = max(before)
    with pinned((processor, min(before))):
        assert os.sched_getaffinity(0) == {processor}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError), pinned([processor]):
        _ = 1 // 0
    assert os.sched_getaffinity(0) == before
    with pinned(()):
        assert os.sched_getaffinity(0) == before


def test_a_processor_that_is_not_ours() -> None:
    with (
        pytest.raises(DeviceError, match=r"may not use processors \[9999\]; choose from"),
        pinned([9999]),
    ):
        pass
