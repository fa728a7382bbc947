"""A request travels as plain data; what is wrong in it is one line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks.records.request import Request
from deploy.errors import ConfigError


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(scenario="server", target_qps=5, threads=2, affinity=(0, 1), models=("student",)),
        Request(scenario="server", bound_ms=2.5, batch=1, power=True, rails=("VDD_IN",)),
    ],
)
def test_there_and_back(request_: Request) -> None:
    assert Request.from_dict(json.loads(json.dumps(request_.to_dict()))) == request_


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"scenario": "single_stream"}, "did you mean 'single-stream'"),
        ({"profile": "fast"}, "profile: unknown 'fast'; choose from"),
        ({"provider": "cuda"}, "provider: unknown 'cuda'"),
        ({"batch": 0}, "batch: 0; give a whole number of 1 or more"),
        ({"batch": 1.5}, "batch: 1.5"),
        ({"threads": 0}, "threads: 0"),
        ({"threads": True}, "threads: True"),
        ({"queries": 0}, "queries: 0"),
        ({"models": []}, r"models: \[\]"),
        ({"models": ["student", "student"]}, "at most once"),
        ({"models": "student"}, "give a list"),
        ({"affinity": [-1]}, "affinity: -1"),
        ({"duration_s": 0}, "duration_s: 0; give a number above 0"),
        ({"duration_s": math.nan}, "duration_s: nan"),
        ({"duration_s": math.inf}, "duration_s: inf"),
        ({"power": "yes"}, "power: 'yes'; give true or false"),
        ({"thread": 2}, "did you mean 'threads'"),
        ({"xyzzy": 2}, "unknown setting 'xyzzy'; choose from"),
        ({"scenario": "server"}, "server: give the load"),
        ({"scenario": "server", "target_qps": 1, "bound_ms": 1}, "server: give the load"),
        ({"target_qps": 1}, "belong to the server scenario"),
        ({"meter": "nvml"}, "no power was asked for"),
        ({"target": 3}, "target: 3"),
        ({"device": None}, "device: None"),
        ({"power": True, "rails": [1]}, "names of rails"),
    ],
)
def test_what_is_wrong_is_one_line(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        Request.from_dict(given)
    assert "\n" not in str(refused.value)


def test_a_request_is_an_object() -> None:
    with pytest.raises(ConfigError, match="give an object"):
        Request.from_dict([])  # type: ignore[arg-type]
