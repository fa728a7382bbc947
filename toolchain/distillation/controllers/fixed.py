"""The recipe's strengths, always."""

from __future__ import annotations

from collections.abc import Mapping

from toolchain.distillation.controllers.controller import Stats, Steady, controller
from toolchain.distillation.lessons import School


@controller("fixed", about="the recipe's strengths, always")
class FixedStrength(Steady):
    """The recipe's strengths, always."""

    def __init__(self, school: School) -> None:
        self._base = dict(school.base)

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """The same at every step."""
        return self._base
