"""Is the exported model still the model?  Compare a session with reference outputs.

A quantized export is judged by its decisions and by the task's metric; differences of single
elements localise a fault but do not decide, unless a tolerance bounds them.
Axes: N rows, B rows of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.errors import VerificationError
from deploy.sessions.session import Session


@dataclass(frozen=True)
class Tolerance:
    """What counts as the same model.  A share of rows is rounded up to whole rows.

    Attributes:
        decisions: Smallest accepted share of rows whose argmax agrees, in [0, 1].
        points: Largest accepted absolute difference of top-1, in percentage points.
        max_abs: Largest accepted absolute difference of any output element.
        max_steps: The same in quantization steps of the output; needs ``one_step``.
    """

    decisions: float = 1.0
    points: float = 0.0
    max_abs: float = math.inf
    max_steps: float = math.inf


FLOAT32 = Tolerance(decisions=0.999, points=0.1, max_abs=1e-3)
INT8 = Tolerance(decisions=0.99, points=0.5)
# So many of the rows that are decided otherwise are kept by number.
SHOWN_ROWS = 20


@dataclass(frozen=True)
class Verification:
    """What was measured against what was allowed; truthy when it passed.

    ``agreeing`` of ``rows`` decisions are equal; ``reference_correct`` and ``exported_correct``
    rows are right.  ``max_abs`` is NaN as soon as either side holds a NaN; ``one_step`` is the
    output's quantization step, where it has one.  ``differing`` are the first rows that are decided
    otherwise.
    """

    session: str
    output: str
    rows: int
    agreeing: int
    reference_correct: int
    exported_correct: int
    max_abs: float
    one_step: float | None
    allowed: Tolerance
    differing: tuple[int, ...] = ()

    @property
    def decisions(self) -> float:
        """Share of rows with the same argmax, in [0, 1]."""
        return self.agreeing / self.rows if self.rows else math.nan

    @property
    def points(self) -> float:
        """Top-1 of the export minus top-1 of the reference, in percentage points."""
        if not self.rows:
            return math.nan
        return 100 * (self.exported_correct - self.reference_correct) / self.rows

    @property
    def max_steps(self) -> float:
        """``max_abs`` in quantization steps of the output; NaN when the step is not known."""
        return self.max_abs / self.one_step if self.one_step else math.nan

    def __bool__(self) -> bool:
        return bool(self.rows) and not self.failures()

    def failures(self) -> list[str]:
        """What was not met, each with the measured and the allowed value."""
        allowed, failures = self.allowed, []
        if not self.rows - self.agreeing <= _whole_rows(1 - allowed.decisions, self.rows):
            failures.append(
                f"the same decision in {self.decisions:.4%} of them "
                f"(required {allowed.decisions:.4%})"
            )
        if not (
            abs(self.exported_correct - self.reference_correct)
            <= _whole_rows(allowed.points / 100, self.rows)
        ):
            failures.append(f"top-1 {self.points:+.3f} points (allowed {allowed.points:g})")
        # Not finite is never a pass, however wide the tolerance is.
        if not (math.isfinite(self.max_abs) and self.max_abs <= allowed.max_abs):
            failures.append(f"max |delta| {self.max_abs:.3g} (allowed {allowed.max_abs:.3g})")
        # A hair above whole steps: the step itself is a rounded float32.
        if math.isfinite(allowed.max_steps) and not self.max_steps <= allowed.max_steps + 1e-3:
            failures.append(
                f"max |delta| {self.max_steps:.3g} quantization steps "
                f"(allowed {allowed.max_steps:g})"
            )
        return failures

    def require(self) -> Verification:
        """Itself when it passed.

        Raises:
            VerificationError: It did not; with the measured and the allowed value of each failure.
        """
        if not self:
            raise VerificationError(
                f"{self.session}: output {self.output!r} is not the reference's over {self.rows} "
                f"rows: {'; '.join(self.failures()) or 'nothing was compared'}; look for float or "
                "clipped layers in the kernel report, or calibrate on more data"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "decisions": self.decisions,
            "points": self.points,
            "max_steps": self.max_steps,
            "passed": bool(self),
        }


def verify(
    reference_NC: np.ndarray,
    session: Session,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    allowed: Tolerance,
    *,
    one_step: float | None = None,
    output: str | None = None,
) -> Verification:
    """Run ``session`` over batches of (inputs, labels) and compare it with ``reference_NC``.

    The reference holds one row per input, in the order of the batches.

    Raises:
        VerificationError: The session's shapes are not the reference's, or there was nothing to
            compare, or steps are bounded and the step is not known.
    """
    if math.isfinite(allowed.max_steps) and not (one_step and one_step > 0):
        raise VerificationError(
            f"{session.name}: max_steps is {allowed.max_steps:g} and one_step "
            f"is {one_step}; give the quantization step of the output"
        )
    source, target = session.inputs[0].name, output or session.outputs[0].name
    rows = agreeing = reference_correct = exported_correct = 0
    worst = 0.0
    differing: list[int] = []
    for inputs, labels in batches:
        want_BC = reference_NC[rows : rows + len(inputs)]
        got_BC = session.run({source: np.ascontiguousarray(inputs, dtype=np.float32)})[target]
        if want_BC.shape != got_BC.shape:
            raise VerificationError(
                f"{session.name}: output {target!r} has shape {got_BC.shape} from row {rows} on "
                f"and the reference {want_BC.shape}; verify on the samples it was taken from"
            )
        labels_B = np.asarray(labels)
        delta_BC = np.abs(want_BC.astype(np.float64) - got_BC)
        worst = float(np.maximum(worst, delta_BC.max(initial=0)))  # unlike max(), keeps a NaN
        finite_B = np.isfinite(want_BC).all(axis=1) & np.isfinite(got_BC).all(axis=1)
        want_B, got_B = want_BC.argmax(axis=1), got_BC.argmax(axis=1)
        same_B = (want_B == got_B) & finite_B
        agreeing += int(same_B.sum())
        differing += [rows + int(row) for row in np.flatnonzero(~same_B)]
        reference_correct += int((want_B == labels_B).sum())
        exported_correct += int(((got_B == labels_B) & finite_B).sum())
        rows += len(inputs)
    if not rows or rows != len(reference_NC):
        raise VerificationError(
            f"{session.name}: compared {rows} rows with a reference of "
            f"{len(reference_NC)}; give the same samples to both, at least one"
        )
    return Verification(
        session.name,
        target,
        rows,
        agreeing,
        reference_correct,
        exported_correct,
        worst,
        one_step,
        allowed,
        tuple(differing[:SHOWN_ROWS]),
    )


def _whole_rows(share: float, rows: int) -> int:
    """Rows in ``share`` of them, rounded up; the hair keeps 0.01 x 100 at one row."""
    return math.ceil(share * rows - 1e-9)
