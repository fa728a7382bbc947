"""When the dean is not to be trusted: its signal is judged on two disjoint halves of the held-out batch.

    r_i = cos(h of one half, h of the other) at probe i
    noisy  iff  mean(r) <= 1.645 std(r) / sqrt N  over the last N probes

that is, a one-sided test at 5% does not show that two halves agree at all. h are the derivatives of the
held-out loss by all strengths, each times the recipe's strength. While the signal is noisy the strengths
are the recipe's, and the dean does not learn. **Reconstruction**: Liu et al. 2022 name no such criterion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Z_5_PERCENT = 1.645


def agreement(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine of two lists of derivatives, in [-1, 1]; 0 where one of them is all zero.

    >>> agreement([1.0, 2.0], [2.0, 4.0]), agreement([1.0], [-3.0]), agreement([1.0], [0.0])
    (1.0, -1.0, 0.0)
    """
    scale = sum(a * a for a in left) ** 0.5 * sum(b * b for b in right) ** 0.5
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return max(-1.0, min(1.0, product / scale)) if scale > 0 else 0.0


class Trust:
    """Keeps the last agreements and judges them.

    Args:
        probes: N, at least 2; before so many probes there is no judgement, and trust.
    """

    def __init__(self, probes: int) -> None:
        self._seen: deque[float] = deque(maxlen=probes)

    def add(self, value: float) -> None:
        """Take in one probe's agreement."""
        self._seen.append(value)

    @property
    def last(self) -> float:
        """The newest agreement; 0 before the first."""
        return self._seen[-1] if self._seen else 0.0

    @property
    def margin(self) -> float:
        """mean(r) - 1.645 std(r) / sqrt N over the probes so far; 0 before the second."""
        if len(self._seen) < 2:
            return 0.0
        return fmean(self._seen) - Z_5_PERCENT * stdev(self._seen) / len(self._seen) ** 0.5

    @property
    def noisy(self) -> bool:
        """Whether the last N probes fail the test."""
        return len(self._seen) == self._seen.maxlen and self.margin <= 0

    def state_dict(self) -> dict[str, Any]:
        """The agreements that are remembered."""
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._seen.clear()
        self._seen.extend(state["seen"])
