"""Distillation strengths that move on a schedule from one factor of the recipe's to another.

s_i(t) = base_i (a + (b - a) w(t)),   w(t) = min(t / (u T), 1), or (1 - cos pi w) / 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from toolchain.distillation.controllers.controller import Stats, Steady, controller
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.options import Until, Weight


@controller(
    "ramp", about="distillation strengths on a line or a cosine from start to end; task stays"
)
class RampStrength(Steady):
    """Moves the distillation strengths from ``start`` to ``end`` times the recipe's; task stays.

    Args:
        school: Its ``base`` are the recipe's strengths.
        start: Factor at the first step.
        end: Factor once ``until`` is reached.
        until: Share of the run, in (0, 1], after which nothing changes any more.
        shape: ``linear``, or ``cosine``: half a wave, flat at both ends.
    """

    def __init__(
        self,
        school: School,
        *,
        start: Weight = 0.0,
        end: Weight = 1.0,
        until: Until = 1.0,
        shape: Literal["linear", "cosine"] = "linear",
    ) -> None:
        self._base, self._start, self._end = dict(school.base), start, end
        self._until, self._shape = until, shape

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Strengths on the way from the first step to ``until``."""
        last = max(self._until * (total_steps - 1), 1.0)
        way = min(step / last, 1.0)
        if self._shape == "cosine":
            way = 0.5 - 0.5 * math.cos(math.pi * way)
        factor = self._start + (self._end - self._start) * way
        return {k: v if k == TASK else factor * v for k, v in self._base.items()}
