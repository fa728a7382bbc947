"""Which strengths a dean may move: those of whose derivatives it is shown that they are no noise.

    x_i  = h_i / rms(h_{i-N+1}, .., h_i)                  at probe i, of one strength
    t(n) = sqrt(n) mean(x) / std(x)                       over n probes
    p(n) = P(|T| <= |t(n)|),  T Student's t of n - 1 degrees (Gosset 1908)
    shown  iff  p > 95% over all probes, or p > 99% over the last N; and there are N

h is the derivative of the held-out loss by that strength. Two probes share neither the samples that are
looked ahead at nor those that the terms' gradients are of, so what is noise in either, e.g. a teacher whose
answers mean nothing, changes sign from probe to probe. Noise is presumed: a strength stays the recipe's until
its derivative has shown a sign, and is the recipe's again where neither the last N probes nor all together
show one any more. Each is judged by itself: a term with a clear say earns no trust for others. Divided by the
root mean square of its recent past every probe counts about the same, also when gradients have become a tenth
of what they were.

The test is made anew at every probe, so that noise passes now and then, for some probes. Over the last N
probes more is asked for, because there are many last N in a training; and how far a strength can go that
passed by chance is bounded by the pull towards the recipe's (see ``network``).

**Reconstruction**: Liu et al. 2022 name no such criterion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.statistics.student_t import within

SURE, SURE_OF_A_FEW = 0.95, 0.99


def t_statistic(values: Sequence[float]) -> float:
    """sqrt(n) mean / std; 0 for fewer than two or only zeros, infinite for a constant that is none.

    >>> t_statistic([1.0, 3.0]), t_statistic([2.0]), t_statistic([0.0, 0.0]), t_statistic([-1.0, -1.0])
    (2.0, 0.0, 0.0, -inf)
    """
    if len(values) < 2:
        return 0.0
    mean, spread = fmean(values), stdev(values)
    if spread == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return math.sqrt(len(values)) * mean / spread


def shows(values: Sequence[float], sure: float = SURE) -> bool:
    """Whether the mean is another than 0, by Student's t."""
    t = abs(t_statistic(values))
    return len(values) > 1 and (math.isinf(t) or within(t, len(values) - 1) > sure)


class Evidence:
    """The derivatives by each strength at all probes so far, and what they show.

    Args:
        probes: N, at least 2.
        presume: Whether to ask for evidence; without, every derivative is taken for a signal.
    """

    def __init__(self, probes: int, presume: bool = True) -> None:
        self._least, self._presume = probes, presume
        self._recent: dict[str, list[float]] = {}
        self._scaled: dict[str, list[float]] = {}

    @property
    def least(self) -> int:
        """N."""
        return self._least

    def add(self, names: Iterable[str], derivatives: Iterable[float]) -> None:
        """Take in one probe."""
        for name, value in zip(names, derivatives, strict=True):
            recent = [*self._recent.get(name, []), value][-self._least :]
            scale = math.sqrt(fmean(each * each for each in recent))
            self._recent[name] = recent
            self._scaled.setdefault(name, []).append(value / scale if scale > 0 else 0.0)

    def last(self, name: str) -> float:
        """x of the last probe."""
        return self._scaled[name][-1]

    def t(self, name: str) -> float:
        """t over all probes so far; within +-99, which is as good as sure."""
        return max(-99.0, min(99.0, t_statistic(self._scaled.get(name, []))))

    @property
    def judged(self) -> bool:
        """Whether a strength has N probes; 2 where nobody asks for evidence, because one moves nothing."""
        least = self._least if self._presume else 2
        return any(len(seen) >= least for seen in self._scaled.values())

    def shown(self, name: str) -> bool:
        """Whether this strength's derivative is shown to be no noise, or nobody asks."""
        if not self._presume:
            return True
        seen = self._scaled.get(name, [])
        few = seen[-self._least :]
        return len(seen) >= self._least and (shows(seen) or shows(few, SURE_OF_A_FEW))

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {
            "recent": {name: list(seen) for name, seen in self._recent.items()},
            "scaled": {name: list(seen) for name, seen in self._scaled.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._recent = {name: list(seen) for name, seen in state["recent"].items()}
        self._scaled = {name: list(seen) for name, seen in state["scaled"].items()}
