"""Measuring while a student trains: an objective that looks at itself every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from toolchain.analysis.probing import Probed
from toolchain.training.objective import Objective, Update


class Watched:
    """The objective as it is, and what ``measure`` says of it at every ``every``-th step.

    What was measured travels in the training's checkpoints, so a resumed run measures nothing twice.
    """

    def __init__(self, objective: Objective, every: int, measure: Callable[[int], Probed]) -> None:
        self._objective, self._every, self._measure = objective, every, measure
        self._seen: dict[int, Probed] = {}

    @property
    def seen(self) -> list[Probed]:
        """In the order of steps."""
        return [self._seen[step] for step in sorted(self._seen)]

    def look(self, step: int) -> None:
        """Measure now, unless this step was measured."""
        if step not in self._seen:
            self._seen[step] = self._measure(step)

    @property
    def updates(self) -> Sequence[Update]:
        return self._objective.updates

    def begin_step(self, step: int, total_steps: int) -> None:
        if step % self._every == 0:
            self.look(step)
        self._objective.begin_step(step, total_steps)

    def trail(self) -> Mapping[str, float | Tensor]:
        return self._objective.trail()

    def state_dict(self) -> dict[str, Any]:
        seen = [probed.to_dict() for probed in self.seen]
        return {"objective": self._objective.state_dict(), "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._objective.load_state_dict(state["objective"])
        self._seen = {record["step"]: Probed.from_dict(record) for record in state["seen"]}

    def status(self) -> dict[str, float]:
        return self._objective.status()
