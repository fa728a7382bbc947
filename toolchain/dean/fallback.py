"""When the dean is not to be trusted: its signal is judged on two disjoint halves of the held-out batch.

    r_i = cos(h of one half, h of the other) at probe i
    noise over a set of probes  iff  mean(r) <= 1.645 std(r) / sqrt n

that is, a one-sided test at 5% does not show that two halves agree at all. h are the derivatives of the
held-out loss by all strengths, each times the recipe's strength. From the N-th probe on:

    noise over the last N probes   the dean does not learn; its strengths stand. Where it has found the
                                   best strengths the derivatives vanish, and this is what is left
    noise over all probes so far   the strengths are the recipe's, until the halves have agreed often enough

**Reconstruction**: Liu et al. 2022 name no such criterion.
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


def margin(agreements: Sequence[float]) -> float:
    """mean(r) - 1.645 std(r) / sqrt n; 0 for fewer than two.

    >>> margin([0.5, 0.5, 0.5]), margin([1.0]), margin([-1.0, 1.0]) < 0
    (0.5, 0.0, True)
    """
    if len(agreements) < 2:
        return 0.0
    return fmean(agreements) - Z_5_PERCENT * stdev(agreements) / len(agreements) ** 0.5


class Trust:
    """Keeps the agreements and judges them.

    Args:
        probes: N, at least 2; before so many probes there is no judgement, and trust.
    """

    def __init__(self, probes: int) -> None:
        self._recent: deque[float] = deque(maxlen=probes)
        self._least, self._seen = probes, list[float]()

    def add(self, value: float) -> None:
        """Take in one probe's agreement."""
        self._recent.append(value)
        self._seen.append(value)

    @property
    def last(self) -> float:
        """The newest agreement; 0 before the first."""
        return self._seen[-1] if self._seen else 0.0

    @property
    def learns(self) -> bool:
        """Whether the last N probes show that there is something to learn from."""
        return len(self._seen) < self._least or margin(list(self._recent)) > 0

    @property
    def stands(self) -> bool:
        """Whether all probes together show that what was learned is not noise."""
        return len(self._seen) < self._least or margin(self._seen) > 0

    @property
    def evidence(self) -> float:
        """The margin over all probes together; above 0 where they agree."""
        return margin(self._seen)

    def state_dict(self) -> dict[str, Any]:
        """The agreements."""
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._seen = list(state["seen"])
        self._recent.clear()
        self._recent.extend(self._seen)
