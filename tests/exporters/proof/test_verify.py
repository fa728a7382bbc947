"""A verification passes only on what was compared, within what was allowed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from deploy.errors import VerificationError
from deploy.sessions.session import Feeds, Port
from exporters.proof.verify import FLOAT32, INT8, Tolerance, Verification, verify


class Fake:
    """A session that applies ``change`` to logits that it is given as input."""

    name = "fake"
    inputs = (Port("x", (None, 4), "float32"),)
    outputs = (Port("logits", (None, 4), "float32"),)

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> None:
        self.change = change

    def run(self, feeds: Feeds) -> Feeds:
        return {"logits": self.change(feeds["x"].copy())}

    def close(self) -> None:
        pass


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


def check(
    logits: np.ndarray,
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    allowed: Tolerance = Tolerance(),  # noqa: B008 (frozen)
    **kw: float,
) -> Verification:
    labels = logits.argmax(axis=1)
    batches = [(logits[i : i + 64], labels[i : i + 64]) for i in range(0, len(logits), 64)]
    return verify(logits, Fake(change), batches, allowed, **kw)


def flip(rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Reverses the first rows of the first batch only."""
    done = []

    def change(x: np.ndarray) -> np.ndarray:
        if not done:
            x[:rows] = -x[:rows]
            done.append(True)
        return x

    return change


def test_equal_passes_the_strictest_tolerance(logits: np.ndarray) -> None:
    result = check(logits, allowed=Tolerance(1.0, 0.0, 0.0))
    assert result.require() is result
    assert (result.rows, result.decisions, result.points, result.max_abs) == (200, 1.0, 0.0, 0.0)


def test_rows_are_counted(logits: np.ndarray) -> None:
    result = check(logits, flip(3), Tolerance(decisions=0.985, points=1.5))
    assert (result.agreeing, result.decisions) == (197, 0.985)
    assert result.points == pytest.approx(-1.5)
    assert result
    assert not check(logits, flip(4), Tolerance(decisions=0.985, points=2.0))
    assert not check(logits, flip(4), Tolerance(decisions=0.98, points=1.5))


def test_a_share_of_few_rows_is_rounded_up_to_whole_rows(logits: np.ndarray) -> None:
    assert check(logits[:20], flip(1), INT8)
    assert not check(logits[:20], flip(2), INT8)
    assert not check(logits[:20], flip(1), Tolerance())


@pytest.mark.parametrize("where", ["export", "reference", "both"])
def test_nan_never_passes(logits: np.ndarray, where: str) -> None:
    def poison(x: np.ndarray) -> np.ndarray:
        x[0] = np.nan
        return x

    reference = logits.copy()
    if where != "export":
        reference[0] = np.nan
    session = Fake(poison if where != "reference" else lambda x: x)
    lax = Tolerance(decisions=0.0, points=100.0)
    result = verify(reference, session, [(logits, logits.argmax(axis=1))], lax)
    assert math.isnan(result.max_abs)
    assert not result
    with pytest.raises(VerificationError, match=r"max .delta. nan"):
        result.require()


def test_infinity_never_passes(logits: np.ndarray) -> None:
    assert not check(logits, lambda x: x * np.float32(np.inf), Tolerance(0.0, 100.0))


def test_nothing_compared_is_an_error(logits: np.ndarray) -> None:
    with pytest.raises(VerificationError, match="compared 0 rows"):
        verify(logits[:0], Fake(), [], FLOAT32)
    with pytest.raises(VerificationError, match="compared 100 rows with a reference of 200"):
        verify(logits, Fake(), [(logits[:100], np.zeros(100))], FLOAT32)


def test_shapes_must_agree(logits: np.ndarray) -> None:
    with pytest.raises(VerificationError, match=r"shape \(64, 3\)"):
        check(logits, lambda x: x[:, :3])


def test_differences_in_quantization_steps(logits: np.ndarray) -> None:
    one = Tolerance(decisions=0.0, points=100.0, max_steps=1.0)
    grid = np.round(logits / 0.25).astype(np.float32) * np.float32(0.25)
    result = check(grid, lambda x: x + np.float32(0.25), one, one_step=0.25)
    assert result
    assert result.max_steps == pytest.approx(1)
    assert not check(grid, lambda x: x + np.float32(0.5), one, one_step=0.25)
    with pytest.raises(VerificationError, match="one_step is None"):
        check(logits, allowed=one)


def test_max_abs_bounds(logits: np.ndarray) -> None:
    assert check(logits, lambda x: x + np.float32(5e-4), FLOAT32)
    assert not check(logits, lambda x: x + np.float32(2e-3), FLOAT32)


def test_record(logits: np.ndarray) -> None:
    record = check(logits).to_dict()
    assert record["passed"] is True
    assert record["decisions"] == 1.0
    assert record["allowed"]["decisions"] == 1.0
