"""Top-1 accuracy of a session, and what it predicted.

Axes: N samples, B samples of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

import numpy as np

from deploy.errors import DataError, DeviceError
from deploy.sessions.session import Session


@dataclass(frozen=True)
class Accuracy:
    """What a session answered: ``predictions_N`` int64 and ``logits_NC`` float32, in order."""

    predictions_N: np.ndarray
    logits_NC: np.ndarray
    correct: int

    @property
    def n(self) -> int:
        return len(self.predictions_N)

    @property
    def top1(self) -> float:
        """Percent of samples whose largest logit is the label's."""
        return 100.0 * self.correct / self.n


def evaluate(session: Session, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Accuracy:
    """Run a one-input classifier over batches of (inputs float32 ``[B, ...]``, labels ``[B]``).

    Raises:
        DataError: There are no samples, or labels do not go with the inputs.
        DeviceError: The session returned something else than finite logits ``[B, C]``.
    """
    source, target = session.inputs[0].name, session.outputs[0].name
    logits: list[np.ndarray] = []
    correct = 0
    for inputs, labels in batches:
        labels_B = np.asarray(labels)
        logits_BC = session.run({source: np.ascontiguousarray(inputs, dtype=np.float32)})[target]
        if labels_B.shape != (len(inputs),):
            raise DataError(
                f"labels have shape {labels_B.shape} for {len(inputs)} inputs; "
                f"give one label per input"
            )
        if logits_BC.ndim != 2 or len(logits_BC) != len(inputs):
            raise DeviceError(
                f"{session.name}: output {target!r} has shape {logits_BC.shape} for "
                f"{len(inputs)} inputs; a classifier returns [batch, classes]"
            )
        if not np.isfinite(logits_BC).all():
            raise DeviceError(
                f"{session.name}: output {target!r} holds NaN or infinity; "
                "check the model and the pre-processing of its inputs"
            )
        correct += int((logits_BC.argmax(axis=1) == labels_B).sum())
        logits.append(np.asarray(logits_BC, dtype=np.float32))
    if not sum(map(len, logits)):
        raise DataError("accuracy of nothing: there are no samples; give at least one")
    logits_NC = np.concatenate(logits)
    return Accuracy(logits_NC.argmax(axis=1).astype(np.int64), logits_NC, correct)
