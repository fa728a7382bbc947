from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.engines.profiles import batch_for, choose_profile, range_of
from deploy.errors import DeviceError
from deploy.sessions.session import Port

PROFILE = st.lists(st.integers(1, 9), min_size=3, max_size=3).map(sorted)


def engine_of(profiles: list[list[int]]) -> Any:
    return SimpleNamespace(
        num_optimization_profiles=len(profiles),
        get_tensor_profile_shape=lambda name, index: [(size, 3) for size in profiles[index]],
    )


@given(st.lists(PROFILE, min_size=1, max_size=4), st.integers(1, 10))
def test_the_nearest_optimum_among_those_that_fit(profiles: list[list[int]], batch: int) -> None:
    engine, shapes = engine_of(profiles), {"x": (batch, 3)}
    fitting = {i: abs(p[1] - batch) for i, p in enumerate(profiles) if p[0] <= batch <= p[2]}
    if fitting:
        chosen = choose_profile(engine, shapes, "net")
        assert fitting[chosen] == min(fitting.values())
        assert chosen == min(i for i, far in fitting.items() if far == fitting[chosen])
    else:
        with pytest.raises(DeviceError, match="outside what the engine was built for"):
            choose_profile(engine, shapes, "net")


def test_every_input_has_to_fit() -> None:
    engine = SimpleNamespace(
        num_optimization_profiles=1,
        get_tensor_profile_shape=lambda name, index: [(1,), (2,), (4,) if name == "x" else (2,)],
    )
    assert range_of(engine, 0, ["x", "y"])[2] == {"x": (4,), "y": (2,)}
    assert choose_profile(engine, {"x": (4,), "y": (2,)}, "net") == 0
    with pytest.raises(DeviceError, match="net: inputs of shape"):
        choose_profile(engine, {"x": (4,), "y": (3,)}, "net")


@given(st.lists(PROFILE, min_size=1, max_size=4), st.integers(1, 10))
def test_rows_are_run_in_the_largest_batch_that_they_fill(
    profiles: list[list[int]], rows: int
) -> None:
    batch = batch_for(engine_of(profiles), Port("x", (None, 3), "float32"), rows)
    taken = {size for least, _, most in profiles for size in range(least, most + 1)}
    filled = [size for size in taken if size <= rows]
    assert batch == (max(filled) if filled else min(taken))


def test_a_fixed_batch_needs_no_profile() -> None:
    assert batch_for(SimpleNamespace(), Port("x", (4, 3), "float32"), 16) == 4
