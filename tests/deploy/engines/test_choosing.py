"""Of several engines the one for this machine's GPU is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deploy.engines.choosing import for_this_gpu
from deploy.engines.driver import Driver, Gpu
from deploy.errors import DeviceError


def about(name: str | None, capability: str = "8.7") -> dict[str, Any]:
    return {"gpu": None if name is None else {"name": name, "compute_capability": capability}}


def driver_of(name: str, capability: str) -> Callable[[], Driver]:
    return lambda: Driver("12.6", (Gpu(name, capability, 8, 1 << 30, integrated=True),))


ENGINES = {
    "foreign.plan": about("RTX 4090", "8.9"),
    "any.plan": about(None),
    "nano.plan": about("Orin Nano"),
    "agx.plan": about("AGX Orin"),
}


@pytest.mark.parametrize(
    ("name", "capability", "chosen"),
    [
        ("AGX Orin", "8.7", "agx.plan"),
        ("Orin Nano", "8.7", "nano.plan"),
        ("Orin NX", "8.7", "nano.plan"),  # the kind is the same; the session judges the rest
        ("RTX 4090", "8.9", "foreign.plan"),
        ("A100", "8.0", "any.plan"),
    ],
)
def test_the_nearest(name: str, capability: str, chosen: str) -> None:
    assert for_this_gpu(ENGINES, driver_of(name, capability)) == chosen


def test_without_a_driver_or_a_choice_nobody_is_asked_twice() -> None:
    def none() -> Driver:
        raise DeviceError("no driver")

    def never() -> Driver:
        raise AssertionError("one engine is no choice")

    assert for_this_gpu(ENGINES, none) == "foreign.plan"
    assert for_this_gpu({"only.plan": about("RTX 4090")}, never) == "only.plan"
