"""More rows than a session takes at once come back as if it had taken them all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.sessions.rows import run_rows
from deploy.sessions.session import Feeds, Port


class Doubles:
    """Answers 2x to the batches that it takes, and remembers how many rows each call had."""

    name = "doubles"
    outputs = (Port("y", (None, 2), "float32"),)

    def __init__(self, batch: int | None = None) -> None:
        self.inputs = (Port("x", (batch, 2), "float32"),)
        self.calls: list[int] = []

    def run(self, feeds: Feeds) -> Feeds:
        self.calls.append(len(feeds["x"]))
        return {"y": 2 * feeds["x"]}

    def close(self) -> None: ...


class UpTo(Doubles):
    """Takes batches from ``least`` to ``most``."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def batch_for(self, rows: int) -> int:
        return max(self.least, min(rows, self.most))


def numbered(rows: int) -> np.ndarray:
    return np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)


def test_a_free_batch_takes_one_call() -> None:
    session = Doubles()
    assert np.array_equal(run_rows(session, {"x": numbered(16)})["y"], 2 * numbered(16))
    assert session.calls == [16]


@given(rows=st.integers(1, 20), batch=st.integers(1, 9))
def test_a_fixed_batch(rows: int, batch: int) -> None:
    session = Doubles(batch)
    assert np.array_equal(run_rows(session, {"x": numbered(rows)})["y"], 2 * numbered(rows))
    assert session.calls == [batch] * -(-rows // batch)


@pytest.mark.parametrize(
    ("least", "most", "calls"), [(1, 8, [8, 8]), (1, 5, [5, 5, 5, 5]), (32, 64, [32])]
)
def test_limits_of_a_batch(least: int, most: int, calls: list[int]) -> None:
    session = UpTo(least, most)
    assert np.array_equal(run_rows(session, {"x": numbered(16)})["y"], 2 * numbered(16))
    assert session.calls == calls
