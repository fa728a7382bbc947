"""How much: who sets the strength of each supervision term, step by step.

A strength is the weight of a term in the student's loss; the term ``task`` is the cross-entropy
with the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor

from deploy.errors import ConfigError
from toolchain.distillation.registry import Registry

Stats = Mapping[str, float | Tensor]


class Controller(Protocol):
    """Sets strengths; a learning one keeps what it learned in its state."""

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Strength of each term for ``step`` (from 0); ``stats`` are the last step's terms."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


CONTROLLERS: Registry[Callable[..., Controller]] = Registry("distil.controller")


class FixedStrength:
    """The recipe's strengths, always."""

    def __init__(self, base: Mapping[str, float]) -> None:
        self._base = dict(base)

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """The same at every step."""
        return self._base

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


class RampStrength:
    """Moves the distillation strengths from ``start`` to ``end`` times the recipe's; task stays.

    Args:
        base: The recipe's strengths.
        start: Factor at the first step.
        end: Factor once ``until`` is reached.
        until: Share of the run, in (0, 1], after which nothing changes any more.
        shape: ``linear``, or ``cosine``: half a wave, flat at both ends.

    Raises:
        ConfigError: A value outside its range.
    """

    def __init__(
        self,
        base: Mapping[str, float],
        *,
        start: float = 0.0,
        end: float = 1.0,
        until: float = 1.0,
        shape: Literal["linear", "cosine"] = "linear",
    ) -> None:
        if shape not in ("linear", "cosine"):
            raise ConfigError(
                f"distil.controller_options.shape: {shape!r}; choose 'linear' or 'cosine'"
            )
        if not 0 < until <= 1 or min(start, end) < 0:
            raise ConfigError(
                f"distil.controller_options: start {start}, end {end}, until {until}; "
                "factors are at least 0 and until is in (0, 1]; change them"
            )
        self._base, self._start, self._end = dict(base), start, end
        self._until, self._shape = until, shape

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Strengths on the way from the first step to ``until``."""
        last = max(self._until * (total_steps - 1), 1.0)
        way = min(step / last, 1.0)
        if self._shape == "cosine":
            way = 0.5 - 0.5 * math.cos(math.pi * way)
        factor = self._start + (self._end - self._start) * way
        return {k: v if k == "task" else factor * v for k, v in self._base.items()}

    def state_dict(self) -> dict[str, Any]:
        """Empty: the step says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


CONTROLLERS.add("fixed", FixedStrength)
CONTROLLERS.add("ramp", RampStrength)
