"""When the dean is not to be trusted: its signal is judged on halves of the held-out batch, and on probes.

    p_i = <h of one half, h of the other> / rows, within [-1, 1], at probe i
    q_i = <h of this probe, h of the one before> / rows, likewise
    noise over n probes  iff  mean <= 1.645 std / sqrt n, of p or of q

A product's expectation is the square of what both sides have in common; where a one-sided test at 5% does
not show it to be above zero, that is called noise. The halves share the terms' gradients and differ in the
held-out samples, so p sees noise in the held-out loss; probes share neither, so q sees noise in the terms
too, e.g. of a teacher whose answers mean nothing. h are the derivatives of the held-out loss by all
strengths (rows), each divided by the root mean square of its own history: every strength has a voice, and
a derivative that has become small has a small one. Before the N-th probe nothing is judged, and a training
that ends there says so; from it on:

    noise over the last N probes   the dean does not learn; its strengths stand. Where it has found the
                                   best strengths the derivatives vanish, and this is what is left
    and over all probes so far     the strengths are the recipe's, until one of the two is no noise

**Reconstruction**: Liu et al. 2022 name no such criterion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

Z_5_PERCENT = 1.645


def agreement(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine of two lists of derivatives, in [-1, 1]; 0 where one of them is all zero.

    >>> agreement([3.0, 4.0], [6.0, 8.0]), agreement([1.0], [-3.0]), agreement([1.0], [0.0])
    (1.0, -1.0, 0.0)
    """
    scale = sum(a * a for a in left) ** 0.5 * sum(b * b for b in right) ** 0.5
    total = sum(a * b for a, b in zip(left, right, strict=True))
    return max(-1.0, min(1.0, total / scale)) if scale > 0 else 0.0


def product(left: Sequence[float], right: Sequence[float]) -> float:
    """The mean product, cut off at -1 and 1: one wild probe is one probe.

    >>> product([1.0, 2.0], [0.5, -0.5]), product([9.0], [9.0]), product([], [])
    (-0.25, 1.0, 0.0)
    """
    total = sum(a * b for a, b in zip(left, right, strict=True))
    return max(-1.0, min(1.0, total / max(1, len(left))))


def margin(products: Sequence[float]) -> float:
    """mean(p) - 1.645 std(p) / sqrt n; 0 for fewer than two.

    >>> margin([0.5, 0.5, 0.5]), margin([1.0]), margin([-1.0, 1.0]) < 0
    (0.5, 0.0, True)
    """
    if len(products) < 2:
        return 0.0
    return fmean(products) - Z_5_PERCENT * stdev(products) / len(products) ** 0.5


class Scale:
    """The root mean square of each strength's derivative over all probes so far."""

    def __init__(self) -> None:
        self._squares: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, names: Sequence[str], derivatives: Sequence[float]) -> None:
        """Take in one probe."""
        for name, value in zip(names, derivatives, strict=True):
            self._squares[name] = self._squares.get(name, 0.0) + value * value
            self._counts[name] = self._counts.get(name, 0) + 1

    def divide(self, names: Sequence[str], derivatives: Sequence[float]) -> list[float]:
        """Each derivative over its root mean square; 0 for one that was never anything else."""
        found = []
        for name, value in zip(names, derivatives, strict=True):
            mean = self._squares[name] / self._counts[name]
            found.append(value / mean**0.5 if mean > 0 else 0.0)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"squares": dict(self._squares), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._squares, self._counts = dict(state["squares"]), dict(state["counts"])


class Series:
    """Products of one kind, and what they show.

    Args:
        probes: How many of them are recent.
    """

    def __init__(self, probes: int) -> None:
        self._probes, self._seen = probes, list[float]()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, value: float) -> None:
        """Take in one product."""
        self._seen.append(value)

    @property
    def learns(self) -> bool:
        """Whether the recent ones show that there is something to learn from."""
        return margin(self._seen[-self._probes :]) > 0

    @property
    def stands(self) -> bool:
        """Whether all of them, or the recent ones, show that what was learned is not noise."""
        return self.learns or self.evidence > 0

    @property
    def evidence(self) -> float:
        """The margin over all of them."""
        return margin(self._seen)

    def state_dict(self) -> list[float]:
        """All of them."""
        return list(self._seen)

    def load_state_dict(self, seen: Sequence[float]) -> None:
        """Restore what ``state_dict`` returned."""
        self._seen = list(seen)


class Trust:
    """Keeps the products of both kinds and judges them.

    Args:
        probes: N, at least 2; before so many probes there is no judgement, and trust.
    """

    def __init__(self, probes: int) -> None:
        self._least = probes
        self.halves, self.probes = Series(probes), Series(probes)

    def add(self, halves: float, probes: float | None) -> None:
        """Take in a probe: its halves' product, and its own with the one before; the first has none."""
        self.halves.add(halves)
        if probes is not None:
            self.probes.add(probes)

    @property
    def least(self) -> int:
        """N."""
        return self._least

    @property
    def judged(self) -> bool:
        """Whether there are N probes: what is trusted before was never tested."""
        return len(self.halves) >= self._least

    @property
    def learns(self) -> bool:
        """Whether the last N probes show that there is something to learn from."""
        return not self.judged or (self.halves.learns and self.probes.learns)

    @property
    def stands(self) -> bool:
        """Whether all probes together, or the last N, show that what was learned is not noise."""
        return not self.judged or (self.halves.stands and self.probes.stands)

    def state_dict(self) -> dict[str, Any]:
        """The products."""
        return {"halves": self.halves.state_dict(), "probes": self.probes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.halves.load_state_dict(state["halves"])
        self.probes.load_state_dict(state["probes"])
