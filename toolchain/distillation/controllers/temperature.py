r"""CTKD: a temperature that learns to make distillation harder, and gets its way little by little.

    T = low + span sigmoid(theta),   theta = 1 at first           one for all samples
    the student descends L, theta climbs it: its gradient is -lambda dL / dtheta
    lambda = (1 - cos(pi min(p / until, 1))) / 2                  p: share of the run that is done

Li, Li, Yang, Zhao, Song, Luo, Li, Yang 2023, "Curriculum Temperature for Knowledge Distillation", AAAI,
arXiv 2211.16231: the global form; there T is in (1, 21) and lambda rises for 10 of 240 epochs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.config import Distil
from toolchain.distillation.controllers.controller import Guidance, Stats, Steady, controller
from toolchain.distillation.lessons import Lesson, School
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.options import Positive, Until


def require_temperature(distil: Distil) -> None:
    """Refuse losses of which none has a temperature.

    Raises:
        ConfigError: Lists them.
    """
    entries = [LOSSES.look_up(loss.loss) for loss in distil.losses]
    if not any(_has_temperature(entry.function or entry.build) for entry in entries):
        raise _nothing_to_set([entry.name for entry in entries])


@controller(
    "temperature",
    about="CTKD: one temperature for all losses that have one, learned against the student",
    source="Li, Li, Yang, Zhao, Song, Luo, Li, Yang 2023, AAAI, arXiv 2211.16231",
    require_losses=require_temperature,
)
class LearnedTemperature(Steady):
    """The recipe's strengths, and a temperature that the student's optimizer moves uphill.

    Args:
        school: At least one of its losses has a temperature.
        low: Lower bound of the temperature.
        span: How far above it the upper bound is.
        until: Share of the run, in (0, 1], after which the reversed gradient has its full size.

    Raises:
        ConfigError: No loss has a temperature.
    """

    def __init__(
        self, school: School, *, low: Positive = 1.0, span: Positive = 20.0, until: Until = 1.0
    ) -> None:
        self._softened = [term.name for term in school.terms if _has_temperature(term.loss)]
        if not self._softened:
            raise _nothing_to_set([term.name for term in school.terms])
        self._base, self._low, self._span, self._until = dict(school.base), low, span, until
        self._theta = nn.Parameter(torch.ones((), device=school.precision.device))
        self.parameters = (self._theta,)
        self._lambda = 0.0

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """The recipe's."""
        way = min(step / max(self._until * (total_steps - 1), 1.0), 1.0)
        self._lambda = 0.5 - 0.5 * math.cos(math.pi * way)
        return self._base

    def guide(self, lesson: Lesson) -> Guidance:
        """The temperature, with a gradient that is reversed and scaled by lambda."""
        t = self._temperature()
        reversed_t = t.detach() - self._lambda * (t - t.detach())  # the bracket is exactly zero
        return Guidance(options={name: {"temperature": reversed_t} for name in self._softened})

    def trail(self) -> Mapping[str, float | Tensor]:
        """The temperature, and how much of its gradient is let through."""
        return {"temperature": self._temperature().detach(), "lambda": self._lambda}

    def state_dict(self) -> dict[str, Any]:
        """What the temperature was learned to be."""
        return {"theta": self._theta.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._theta.data.copy_(state["theta"])

    def _temperature(self) -> Tensor:
        return self._low + self._span * torch.sigmoid(self._theta)


def _has_temperature(loss: Any) -> bool:
    """Whether this function, module or kind of module can be told a temperature at every batch."""
    called = loss.forward if hasattr(loss, "forward") else loss
    return "temperature" in inspect.signature(called).parameters


def _nothing_to_set(names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"distil.losses: {', '.join(names) or 'none'} given with the controller temperature, and none has a "
        "temperature; accepted are losses like kl, dkd and dist; add one"
    )
