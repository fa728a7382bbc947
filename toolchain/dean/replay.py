"""Two controllers that say what a dean is worth: ``replay`` repeats one's strengths, ``anti`` inverts them.

    replay   s_i(t) = what the log of an earlier training says of step t
    anti     s_i(t) = max(0, 2 base_i - dean_i(t))

With the same strengths and a student that starts elsewhere, ``replay`` tells a good schedule from a
schedule that fits this student. A dean that is worth something is better than its mirror image.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.errors import ConfigError
from toolchain.dean.controller import DeanController
from toolchain.dean.requirements import require_all
from toolchain.distillation.controllers.controller import Stats, Steady, controller
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.options import HeldOut

STRENGTH = "strength."


@controller(
    "replay",
    about="the strengths of an earlier training, step by step, from its metrics log",
    held_out=True,
)
class ReplayStrength(Steady):
    """Reads every step's strengths from a log's ``trail`` records.

    Args:
        school: Whose terms have the names that they had then.
        log: ``training.metrics.jsonl`` of the earlier training.
        held_out: Share of the training part that stays unused, as the dean's did: equal data and steps.

    Raises:
        ConfigError: There is no such log, or it is of other terms.
    """

    def __init__(self, school: School, *, log: str | Path, held_out: HeldOut = 0.1) -> None:
        self._log = str(log)
        self._by_step = _read(self._log)
        names = set(next(iter(self._by_step.values())))
        if names != set(school.base):
            raise ConfigError(
                f"distil.controller_options.log: {self._log!r} has strengths of {sorted(names)}; accepted "
                f"are those of {sorted(school.base)}; list the same losses as that training"
            )

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Those of the same step.

        Raises:
            ConfigError: The earlier training had fewer steps, or more: said at the first of them.
        """
        if (steps := max(self._by_step) + 1) != total_steps or step not in self._by_step:
            raise ConfigError(
                f"distil.controller_options.log: {self._log!r} has {steps} steps and this training "
                f"{total_steps}; accepted is a log of as many; train for as many epochs, with the same batch "
                "size and held_out"
            )
        return self._by_step[step]


@controller(
    "anti",
    about="the dean's strengths mirrored at the recipe's: what hurts gets more; for ablations",
    source="after DDSL: Liu et al. 2022; ours",
    held_out=True,
    require=require_all,
    version=3,
)
class AntiDean(Steady):
    """A dean whose advice is turned upside down, for the distillation strengths.

    Args:
        school: As for the dean.
        **options: The dean's.
    """

    # It takes the dean's options, and only those.
    __signature__ = inspect.signature(DeanController, eval_str=True)

    def __init__(self, school: School, **options: Any) -> None:
        self._base = dict(school.base)
        self._dean = DeanController(school, **options)

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Each as far on the other side of the recipe's, and not below zero."""
        advised = self._dean.strengths(step, total_steps, stats)
        return {
            name: value if name == TASK else max(0.0, 2 * self._base[name] - value)
            for name, value in advised.items()
        }

    def trail(self) -> Mapping[str, float]:
        """The dean's."""
        return self._dean.trail()

    def keep(self, out: Path) -> None:
        """The dean's."""
        self._dean.keep(out)

    def state_dict(self) -> dict[str, Any]:
        """The dean's."""
        return self._dean.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._dean.load_state_dict(state)


def _read(log: str) -> dict[int, dict[str, float]]:
    """The strengths by step, from 0; a trail record says how many steps were done after its own."""
    found: dict[int, dict[str, float]] = {}
    try:
        lines = Path(log).read_text(encoding="utf-8").splitlines()
        for record in map(json.loads, lines):
            if record["kind"] == "trail":
                found[record["step"] - 1] = {
                    key.removeprefix(STRENGTH): float(value)
                    for key, value in record.items()
                    if key.startswith(STRENGTH)
                }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"distil.controller_options.log: {log!r} cannot be read as a metrics log ({error}); accepted "
            "is the training.metrics.jsonl of an earlier training; give its path"
        ) from error
    if not found:
        raise ConfigError(
            f"distil.controller_options.log: {log!r} has no trail, because its strengths were those of the "
            "recipe; accepted is the log of a training whose controller moved them; take 'fixed'"
        )
    return found
