"""Top-1 against a count by hand; bad sessions and empty data are refused."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy import evaluate
from deploy.errors import DataError, DeviceError
from deploy.sessions.session import Feeds, Port


class Echo:
    """Answers with its input, times ``factor``."""

    name = "echo"
    inputs = (Port("x", (None, 3), "float32"),)
    outputs = (Port("y", (None, 3), "float32"),)

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = np.float32(factor)

    def run(self, feeds: Feeds) -> Feeds:
        assert feeds["x"].dtype == np.float32
        assert feeds["x"].flags.c_contiguous
        return {"y": feeds["x"] * self.factor}

    def close(self) -> None:
        pass


def test_top1() -> None:
    inputs = np.eye(3)[[0, 1, 2, 0, 1]]
    labels = np.array([0, 1, 2, 1, 1])
    result = evaluate(Echo(), [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])])
    assert (result.top1, result.correct, result.n) == (80.0, 4, 5)
    np.testing.assert_array_equal(result.predictions_N, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(result.logits_NC, inputs.astype(np.float32))


@pytest.mark.parametrize(("labels", "top1"), [([0, 1], 100.0), ([1, 0], 0.0)])
def test_bounds(labels: list[int], top1: float) -> None:
    assert evaluate(Echo(), [(np.eye(3)[:2], np.array(labels))]).top1 == top1


def test_refuses_nothing_and_wrong_labels() -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate(Echo(), [])
    with pytest.raises(DataError, match=r"shape \(3,\) for 2 inputs"):
        evaluate(Echo(), [(np.eye(3)[:2], np.zeros(3))])


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_refuses_what_is_not_finite(factor: float) -> None:
    with pytest.raises(DeviceError, match="NaN or infinity"):
        evaluate(Echo(factor), [(np.ones((2, 3)), np.zeros(2))])


def test_refuses_outputs_that_are_no_logits() -> None:
    with pytest.raises(DeviceError, match="a classifier returns"):
        evaluate(Echo(), [(np.ones((2, 3, 1)), np.zeros(2))])
