"""The parity ladder: the same samples through one runtime after another, each compared with the one above.

    torch  ->  ONNX Runtime, every Q/DQ pair in float  ->  ONNX Runtime, integer kernels  ->  engine

A rung answers all samples at its largest batch and some of them at its others. A hop compares a rung with the
one above it on decisions and on the task's metric; a failed hop says where the student was lost. What was
not compared is a hop too, with the reason.
Axes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.errors import DeviceError, MissingDependency, VerificationError
from deploy.sessions.session import Session
from exporters.proof.verify import Tolerance, Verification, verify

TORCH, SIMULATED, FUSED, ENGINE = "torch", "simulated", "fused", "engine"
# What a hop may lose. On the student's own grids, in float, only ties of rounding differ. Integer kernels
# round a bias to int32 and scale sums their own way; a grid that the target forces on the student (127 steps
# instead of 255) costs as much.
SAME_GRID = Tolerance(decisions=0.999, points=0.1)
OTHER_GRID = INTEGER_KERNELS = Tolerance(decisions=0.99, points=0.5)
# Batches below a rung's largest show faults of shape, not of accuracy: some rows are enough.
ROWS_AT_OTHER_BATCHES = 256
# Two float32 sums of the last layer may be this far apart, of the largest answer; a turned rounding is more.
LAST_SUMS = 1e-5

Batches = Callable[[int, int], Iterator[tuple[np.ndarray, np.ndarray]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Samples:
    """What goes through every rung.

    Attributes:
        rows: How many there are.
        batches: (batch size, at most so many rows) to (inputs as the model takes them, labels).
        labelled: Whether the labels are true; otherwise any, and no metric is stated.
        source: Where they come from, in words.
    """

    rows: int
    batches: Batches
    labelled: bool
    source: str

    @classmethod
    def of(cls, inputs: np.ndarray, labels_N: np.ndarray | None, source: str) -> Samples:
        """Samples in memory.

        Raises:
            VerificationError: There are none, or not one label for each.
        """
        labels = np.zeros(len(inputs), np.int64) if labels_N is None else labels_N
        if not len(inputs) or labels.shape != (len(inputs),):
            raise VerificationError(
                f"{source}: {len(inputs)} inputs and labels of shape {labels.shape}; "
                "give at least one input and one label for each"
            )

        def batches(size: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, min(rows, len(inputs)), size):
                stop = min(start + size, rows)
                yield inputs[start:stop], labels[start:stop]

        return cls(len(inputs), batches, labels_N is not None, source)


@dataclass(frozen=True)
class Rung:
    """One way to run the student.

    Attributes:
        name: e.g. ``fused``.
        what: The runtime in words, with its version.
        open: Makes its session, or None where this machine has no such runtime.
        least: The smallest batch that it takes; rows that fill none are left out.
        absent: Why there is none.
        optional: Whether a machine that cannot open it is a reason to skip it, e.g. one without a GPU.
        batches: Batch sizes to try, e.g. the ends of an engine's profile; the largest answers all rows.
            Where the model's batch is fixed, that one alone.
        allowed: What it may lose against the rung above.
    """

    name: str
    what: str
    open: Callable[[], Session] | None
    allowed: Tolerance = SAME_GRID
    batches: tuple[int, ...] = (1, 64)
    least: int = 1
    absent: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Hop:
    """One comparison, or the reason why it was not made."""

    above: str
    below: str
    batch: int | None
    check: Verification | None
    skipped: str = ""

    @property
    def failed(self) -> bool:
        return self.check is not None and not self.check

    def to_dict(self) -> dict[str, Any]:
        return {
            "above": self.above,
            "below": self.below,
            "batch": self.batch,
            "check": None if self.check is None else self.check.to_dict(),
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Stand:
    """What a rung answered to all samples.

    Attributes:
        name: Of the rung.
        what: It is, with its version.
        top1: In percent; None where the samples have no labels.
        rows: That it answered.
        as_first: How many of them it decides as the first rung does, however many hops are between.
        same: To how many of them its answer is the first rung's, but for the rounding of the last sums:
            a single value that was rounded to another step anywhere inside the network is far more.
    """

    name: str
    what: str
    top1: float | None
    rows: int
    as_first: int
    same: int


@dataclass(frozen=True)
class Ladder:
    """All hops of one target; truthy when at least one was made and none failed."""

    target: str
    rows: int
    source: str
    stands: tuple[Stand, ...]
    hops: tuple[Hop, ...]

    @property
    def failed(self) -> Hop | None:
        """The first hop that lost the student."""
        return next((hop for hop in self.hops if hop.failed), None)

    def __bool__(self) -> bool:
        return any(hop.check is not None for hop in self.hops) and self.failed is None

    def require(self) -> Ladder:
        """Itself when it passed.

        Raises:
            VerificationError: Names the first hop that failed, and by how much.
        """
        hop = self.failed
        if hop is not None and hop.check is not None:
            raise VerificationError(
                f"{self.target}: lost between {hop.above} and {hop.below} at batch {hop.batch}: "
                f"{'; '.join(hop.check.failures())}, over {hop.check.rows} rows of {self.source}; "
                "look at the layers that are blamed"
            )
        if not self:
            reasons = "; ".join(f"{hop.below}: {hop.skipped}" for hop in self.hops)
            raise VerificationError(
                f"{self.target}: nothing was compared ({reasons}); give a runtime for one rung"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "rows": self.rows,
            "samples": self.source,
            "rungs": [asdict(stand) for stand in self.stands],
            "hops": [hop.to_dict() for hop in self.hops],
            "failed": None if self.failed is None else self.failed.to_dict(),
            "passed": bool(self),
        }


def climb(
    target: str, rungs: list[Rung], samples: Samples, progress: Progress | None = None
) -> Ladder:
    """Send the samples down the ladder; the first rung is the reference.

    A rung that is absent is skipped with its reason, and the next one is compared with the last that
    answered. ``progress`` is told which rung has done how many rows of how many.

    Raises:
        VerificationError: There is no rung that can answer first, or shapes do not agree.
    """
    stands: list[Stand] = []
    hops: list[Hop] = []
    above: tuple[str, np.ndarray] | None = None
    first_NC: np.ndarray | None = None
    for rung in rungs:
        session, absent = _open(rung)
        if session is None:
            hops.append(Hop(above[0] if above else "", rung.name, None, None, absent))
            continue
        try:
            sizes = _sizes(session, rung.batches, rung.least, samples.rows)
            least = max(rung.least, session.inputs[0].shape[0] or 1)
            whole = _whole(samples.rows, sizes[-1], least)
            recorder = _Recorder(session, rung.name, whole, progress)
            answered_NC, top1 = _answer(recorder, samples, sizes[-1], whole, above, rung, hops)
            for size in sizes[:-1]:
                # Against the rung above, not against itself: a batch of one must be the student too.
                reference_NC = answered_NC if above is None else above[1]
                rows = _whole(min(len(answered_NC), ROWS_AT_OTHER_BATCHES), size, least)
                check = verify(
                    reference_NC[:rows], session, samples.batches(size, rows), rung.allowed
                )
                hops.append(Hop(rung.name if above is None else above[0], rung.name, size, check))
        finally:
            session.close()
        if first_NC is None:
            first_NC = answered_NC
        rows = min(len(first_NC), len(answered_NC))
        as_first, same = _alike(first_NC[:rows], answered_NC[:rows])
        stands.append(Stand(rung.name, rung.what, top1, rows, as_first, same))
        if above is None or len(answered_NC) == len(above[1]):
            above = rung.name, answered_NC
    return Ladder(target, samples.rows, samples.source, tuple(stands), tuple(hops))


def _alike(first_NC: np.ndarray, other_NC: np.ndarray) -> tuple[int, int]:
    """How many rows decide alike, and how many answer the same."""
    decided = int((first_NC.argmax(axis=1) == other_NC.argmax(axis=1)).sum())
    largest_N = np.abs(first_NC).max(axis=1)
    apart_N = np.abs(first_NC - other_NC).max(axis=1)
    return decided, int((apart_N <= LAST_SUMS * largest_N).sum())


def _open(rung: Rung) -> tuple[Session | None, str]:
    """The rung's session, or why there is none."""
    if rung.open is None:
        return None, rung.absent
    try:
        return rung.open(), ""
    except (DeviceError, MissingDependency) as error:
        if not rung.optional:
            raise
        return None, str(error)


def _answer(
    recorder: _Recorder,
    samples: Samples,
    size: int,
    rows: int,
    above: tuple[str, np.ndarray] | None,
    rung: Rung,
    hops: list[Hop],
) -> tuple[np.ndarray, float | None]:
    """``rows`` rows at one batch size: the logits, and top-1 in percent where there are labels."""
    batches = samples.batches(size, rows)
    if above is None:
        correct = 0
        for inputs, labels_B in batches:
            logits_BC = recorder.run({recorder.inputs[0].name: inputs})[recorder.outputs[0].name]
            correct += int((logits_BC.argmax(axis=1) == labels_B).sum())
    else:
        check = verify(above[1][:rows], recorder, batches, rung.allowed)
        hops.append(Hop(above[0], rung.name, size, check))
        correct = check.exported_correct
    logits_NC = np.concatenate(recorder.logits)
    return logits_NC, 100.0 * correct / rows if samples.labelled else None


def _sizes(session: Session, wanted: tuple[int, ...], least: int, rows: int) -> list[int]:
    """Batch sizes in ascending order; the one of the model where that is fixed.

    Raises:
        VerificationError: There are fewer samples than the least batch.
    """
    fixed = session.inputs[0].shape[0] if session.inputs[0].shape else None
    least = least if fixed is None else fixed
    if rows < least:
        raise VerificationError(
            f"{session.name}: the least batch is {least} and there are {rows} samples; give as many"
        )
    return sorted({min(size, rows) for size in wanted}) if fixed is None else [fixed]


def _whole(rows: int, size: int, least: int) -> int:
    """Rows without a last batch that is smaller than any that the rung takes."""
    return rows - rows % size if 0 < rows % size < least else rows


class _Recorder:
    """A session that keeps what it answered."""

    def __init__(self, session: Session, name: str, rows: int, progress: Progress | None) -> None:
        self.name = session.name
        self.inputs, self.outputs = session.inputs, session.outputs
        self.logits: list[np.ndarray] = []
        self._session, self._rung, self._rows, self._progress = session, name, rows, progress
        self._done = 0

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answered = self._session.run(feeds)
        logits_BC = np.asarray(answered[self.outputs[0].name], dtype=np.float32)
        self.logits.append(logits_BC)
        self._done += len(logits_BC)
        if self._progress is not None:
            self._progress(self._rung, self._done, self._rows)
        return answered

    def close(self) -> None:
        self._session.close()
