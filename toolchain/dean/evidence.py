"""Which strengths a dean may move: those of whose derivatives it is shown that they are no noise.

    x_i  = h_i / rms(h_{i-N+1}, .., h_i)                  at probe i, of one strength
    t(n) = sqrt(n) mean(x) / std(x)                       over n probes
    p(n) = P(|T| <= |t(n)|),  T Student's t of n - 1 degrees (Gosset 1908)
    shown     once p > 95% over all probes, or p > 99% over the last N; and there are N
    no more   once p < 90% over both

h is the derivative of the held-out loss by that strength. Probes that follow each other share neither the
samples that are looked ahead at nor those that the terms' gradients are of, as long as the held-out part has
enough for both, so what is noise in either, e.g. a teacher whose answers mean nothing, changes sign from
probe to probe. Noise is presumed: a strength stays the recipe's until its derivative has shown a sign, and is
the recipe's again where neither the last N probes nor all together come near one any more; in between it
stays what it was, so that no strength jumps to and fro. Each is judged by itself: a term with a clear say
earns no trust for others. Divided by the root mean square of its recent past every probe counts about the
same, also when gradients have become a tenth of what they were.

The test is made anew at every probe, so that noise passes now and then, for some probes. Over the last N
probes more is asked for, because there are many last N in a training; and how far a strength can go that
passed by chance is bounded by the pull towards the recipe's (see ``network``).

**Reconstruction**: Liu et al. 2022 name no such criterion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from benchmarks.statistics.student_t import within

SURE, SURE_OF_A_FEW, DOUBTFUL = 0.95, 0.99, 0.90
# A spread below this share of the mean is rounding.
ROUNDING = 1e-12


def t_statistic(count: int, total: float, squares: float) -> float:
    """sqrt(n) mean / std of n values with this sum and this sum of squares.

    0 for fewer than two or only zeros, infinite for a constant that is none.

    >>> t_statistic(2, 1.0 + 3.0, 1.0 + 9.0), t_statistic(1, 2.0, 4.0), t_statistic(2, 0.0, 0.0)
    (2.0, 0.0, 0.0)
    >>> t_statistic(3, -3.0, 3.0)
    -inf
    """
    if count < 2:
        return 0.0
    mean = total / count
    variance = (squares - count * mean * mean) / (count - 1)
    if variance <= ROUNDING * mean * mean:
        return math.copysign(math.inf, mean) if mean else 0.0
    return math.sqrt(count / variance) * mean


def confidence(t: float, count: int) -> float:
    """P(|T| <= |t|) for n values; 0 for fewer than two."""
    if count < 2:
        return 0.0
    return 1.0 if math.isinf(t) else within(abs(t), count - 1)


class Evidence:
    """The derivatives by each strength at all probes so far, and what they show.

    Args:
        probes: N, at least 2.
        presume: Whether to ask for evidence; without, every derivative is taken for a signal.
    """

    def __init__(self, probes: int, presume: bool = True) -> None:
        self._least, self._presume = probes, presume
        # Of each strength the last N derivatives, the last N x, and count, sum, and sum of squares of all x.
        self._recent: dict[str, list[float]] = {}
        self._scaled: dict[str, list[float]] = {}
        self._sums: dict[str, tuple[int, float, float]] = {}
        self._shown: set[str] = set()

    def add(self, names: Iterable[str], derivatives: Iterable[float]) -> None:
        """Take in one probe, and judge anew; what is not finite says nothing."""
        for name, found in zip(names, derivatives, strict=True):
            value = found if math.isfinite(found) else 0.0
            recent = [*self._recent.get(name, []), value][-self._least :]
            scale = math.sqrt(fmean(each * each for each in recent))
            x = value / scale if scale > 0 else 0.0
            self._recent[name] = recent
            self._scaled[name] = [*self._scaled.get(name, []), x][-self._least :]
            count, total, squares = self._sums.get(name, (0, 0.0, 0.0))
            self._sums[name] = (count + 1, total + x, squares + x * x)
            self._judge(name)

    def _judge(self, name: str) -> None:
        if not self.enough(name):
            return
        sums, last = self._sums[name], self._scaled[name]
        few = (len(last), sum(last), sum(x * x for x in last))
        of_all, of_few = (confidence(t_statistic(*each), each[0]) for each in (sums, few))
        if of_all > SURE or of_few > SURE_OF_A_FEW:
            self._shown.add(name)
        elif max(of_all, of_few) < DOUBTFUL:
            self._shown.discard(name)

    def last(self, name: str) -> float:
        """x of the last probe."""
        return self._scaled[name][-1]

    def t(self, name: str) -> float:
        """t over all probes so far; within +-99, which is as good as sure."""
        return max(-99.0, min(99.0, t_statistic(*self._sums.get(name, (0, 0.0, 0.0)))))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all strengths that ever had a probe."""
        return tuple(self._sums)

    @property
    def least(self) -> int:
        """N."""
        return self._least

    @property
    def judged(self) -> bool:
        """Whether a strength has N probes; 2 where nobody asks for evidence, because one moves nothing."""
        least = self._least if self._presume else 2
        return any(count >= least for count, _, _ in self._sums.values())

    def enough(self, name: str) -> bool:
        """Whether this strength has N probes."""
        return self._sums.get(name, (0, 0.0, 0.0))[0] >= self._least

    def shown(self, name: str) -> bool:
        """Whether this strength's derivative is shown to be no noise, or nobody asks."""
        return not self._presume or name in self._shown

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and what it showed."""
        return {
            "recent": dict(self._recent),
            "scaled": dict(self._scaled),
            "sums": dict(self._sums),
            "shown": sorted(self._shown),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._recent, self._scaled = dict(state["recent"]), dict(state["scaled"])
        self._sums = {name: tuple(sums) for name, sums in state["sums"].items()}
        self._shown = set(state["shown"])
