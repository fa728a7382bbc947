"""The ladder finds the hop that loses the student, and never skips one without a word."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from deploy.errors import DeviceError, MissingDependency, VerificationError
from deploy.sessions.session import Feeds, Port
from exporters.proof.ladder import Rung, Samples, climb
from exporters.proof.verify import Tolerance

Change = Callable[[np.ndarray], np.ndarray]


class Fake:
    """Logits are the inputs, changed; remembers its batches and whether it was closed."""

    def __init__(self, change: Change = lambda x: x, fixed: int | None = None) -> None:
        self.name = "fake"
        self.inputs = (Port("x", (fixed, 4), "float32"),)
        self.outputs = (Port("logits", (fixed, 4), "float32"),)
        self.change, self.batches, self.closed = change, [], False

    def run(self, feeds: Feeds) -> Feeds:
        self.batches.append(len(feeds["x"]))
        return {"logits": self.change(feeds["x"].copy())}

    def close(self) -> None:
        self.closed = True


def same(x: np.ndarray) -> np.ndarray:
    return x


def turned(x: np.ndarray) -> np.ndarray:
    """Other decisions in the second half of a batch."""
    x[len(x) // 2 :] = x[len(x) // 2 :, ::-1]
    return x


def rung(name: str, session: Fake, batches: tuple[int, ...] = (1, 16), **more: object) -> Rung:
    return Rung(name, name, lambda: session, batches=batches, **more)  # type: ignore[arg-type]


@pytest.fixture
def samples() -> Samples:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    return Samples.of(x, x.argmax(axis=1), "forty")


def test_equal_rungs_pass_and_are_closed(samples: Samples) -> None:
    sessions = [Fake(), Fake(), Fake()]
    seen: list[tuple[str, int, int]] = []
    rungs = [rung(name, each) for name, each in zip("abc", sessions, strict=True)]
    ladder = climb("here", rungs, samples, lambda *at: seen.append(at)).require()
    assert [(hop.above, hop.below, hop.batch) for hop in ladder.hops] == [
        ("a", "a", 1), ("a", "b", 16), ("a", "b", 1), ("b", "c", 16), ("b", "c", 1),
    ]  # fmt: skip
    assert [stand.top1 for stand in ladder.stands] == [100.0] * 3
    assert all(session.closed for session in sessions)
    assert sessions[1].batches == [16, 16, 8] + [1] * 40
    assert seen[-1] == ("c", 40, 40)
    assert json.loads(json.dumps(ladder.to_dict()))["passed"]


@pytest.mark.parametrize("at", [1, 2])
def test_the_first_hop_that_fails_is_named(at: int, samples: Samples) -> None:
    rungs = [rung(name, Fake(turned if i == at else same)) for i, name in enumerate("abc")]
    ladder = climb("here", rungs, samples)
    assert not ladder
    assert ladder.failed is not None
    assert (ladder.failed.above, ladder.failed.below) == ("abc"[at - 1], "abc"[at])
    assert ladder.to_dict()["failed"]["check"]["passed"] is False
    with pytest.raises(VerificationError, match=f"lost between {'abc'[at - 1]} and {'abc'[at]}"):
        ladder.require()


def test_a_fault_of_one_batch_size_is_found(samples: Samples) -> None:
    """As of a graph that has a batch of one for a constant."""
    ones = Fake(lambda x: -x if len(x) == 1 else x)
    ladder = climb("here", [rung("a", Fake()), rung("b", ones)], samples)
    assert ladder.failed is not None
    assert (ladder.failed.below, ladder.failed.batch) == ("b", 1)
    # Also of the first rung, which nothing stands above.
    alone = climb("here", [rung("b", ones)], samples)
    assert alone.failed is not None and alone.failed.batch == 1


def test_profiles_are_tried_at_each_of_their_batches(samples: Samples) -> None:
    engine = Fake()
    ladder = climb("here", [rung("a", Fake()), rung("engine", engine, (2, 4, 64))], samples)
    assert sorted({hop.batch for hop in ladder.hops if hop.below == "engine"}) == [2, 4, 40]


def test_a_fixed_batch_is_the_only_one(samples: Samples) -> None:
    fixed = Fake(fixed=8)
    assert climb("here", [rung("a", Fake()), rung("b", fixed)], samples)
    assert set(fixed.batches) == {8}
    with pytest.raises(VerificationError, match="least batch is 41 and there are 40 samples"):
        climb("here", [rung("b", Fake(fixed=41))], samples)


@pytest.mark.parametrize("fixed", [7, None])
def test_a_batch_that_a_rung_does_not_take_is_left_out(fixed: int | None, samples: Samples) -> None:
    """40 rows are five batches of 7 and a rest; the rung below is compared on all rows again."""
    engine, last = Fake(fixed=fixed), Fake()
    rungs = [rung("a", Fake()), rung("engine", engine, (7,), least=7), rung("b", last)]
    ladder = climb("here", rungs, samples).require()
    assert set(engine.batches) == {7}
    rows = {(hop.above, hop.below): hop.check.rows for hop in ladder.hops if hop.check}
    assert rows[("a", "engine")] == 35
    assert rows[("a", "b")] == 40
    assert [stand.top1 for stand in ladder.stands] == [100.0] * 3


def test_an_absent_rung_is_a_hop_with_its_reason(samples: Samples) -> None:
    def no_driver() -> Fake:
        raise DeviceError("no driver")

    rungs = [
        Rung("torch", "torch", None, absent="no student"),
        rung("a", Fake()),
        Rung("engine", "engine", no_driver, optional=True),
        rung("b", Fake(turned)),
    ]
    ladder = climb("here", rungs, samples)
    skipped = {hop.below: hop.skipped for hop in ladder.hops if hop.check is None}
    assert skipped == {"torch": "no student", "engine": "no driver"}
    assert ladder.failed is not None
    assert (ladder.failed.above, ladder.failed.below) == ("a", "b")
    with pytest.raises(DeviceError, match="no driver"):
        climb("here", [Rung("engine", "engine", no_driver)], samples)


def test_nothing_compared_is_no_pass(samples: Samples) -> None:
    def missing() -> Fake:
        raise MissingDependency("no runtime")

    ladder = climb("here", [Rung("a", "a", missing, optional=True)], samples)
    assert not ladder
    with pytest.raises(VerificationError, match="nothing was compared .a: no runtime."):
        ladder.require()


def test_not_a_number_fails_whatever_is_allowed(samples: Samples) -> None:
    wide = Tolerance(decisions=0.0, points=100.0)
    lost = Fake(lambda x: np.full_like(x, np.nan))
    ladder = climb("here", [rung("a", Fake()), rung("b", lost, allowed=wide)], samples)
    assert not ladder


def test_without_labels_no_metric_is_stated() -> None:
    x = np.eye(4, dtype=np.float32)
    ladder = climb("here", [rung("a", Fake()), rung("b", Fake())], Samples.of(x, None, "eye"))
    assert ladder
    assert [stand.top1 for stand in ladder.stands] == [None, None]


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.zeros((4, 1), np.int64)])
def test_labels_go_with_inputs(labels: np.ndarray) -> None:
    with pytest.raises(VerificationError, match="one label for each"):
        Samples.of(np.eye(4, dtype=np.float32), labels, "eye")
    with pytest.raises(VerificationError, match="at least one input"):
        Samples.of(np.zeros((0, 4), np.float32), None, "none")
