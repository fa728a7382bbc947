"""The losses of an epoch: their means, and whether one or its gradient was not finite, seen now and then.

On a GPU, reading a loss waits for the device, so steps are noted as tensors and read many at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Steps between two looks on a GPU; a CPU has nothing to wait for.
LOOK_EVERY_STEPS_GPU = 20
_NORM = "norm of the gradient"


class Tally:
    """Sums of each term over the steps of one epoch.

    Args:
        updates: Names of what a step notes, in order; with more than one they prefix their terms.
        device_type: Where the losses are.
    """

    def __init__(self, updates: Sequence[str], device_type: str) -> None:
        self._prefixes = {name: f"{name}." if len(updates) > 1 else "" for name in updates}
        self._every = LOOK_EVERY_STEPS_GPU if device_type == "cuda" else 1
        self._unread: list[dict[str, float | Tensor]] = []  # one of each update and step
        self._sums: dict[str, float] = {}

    def note(
        self,
        update: str,
        loss: Tensor,
        terms: Mapping[str, float | Tensor],
        norm: Tensor | None = None,
    ) -> None:
        """Keep what an update saw, and its gradient's norm, without waiting for the device."""
        prefix = self._prefixes[update]
        noted = {prefix + name: value for name, value in {"loss": loss, **terms}.items()}
        if norm is not None:
            noted[_NORM] = norm
        self._unread.append({name: _detached(value) for name, value in noted.items()})

    def due(self, step: int) -> bool:
        """Whether it is time to look after this many steps."""
        return step % self._every == 0

    def look(self) -> tuple[int, str] | None:
        """Read what was noted; what was not finite, a loss or a norm, and how many steps ago that was.

        Terms after such a loss are not counted.
        """
        unread, self._unread = self._unread, []
        for position, numbers in enumerate(read(unread)):
            norm = numbers.pop(_NORM, 0.0)
            for name, value in numbers.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            loss = next(iter(numbers.values()))
            steps_ago = (len(unread) - 1 - position) // len(self._prefixes)
            if not math.isfinite(loss):
                return steps_ago, f"loss is {loss}"
            if not math.isfinite(norm):  # by such a norm a gradient is clipped to zero
                return steps_ago, f"the gradient's norm is {norm}"
        return None

    def means(self, steps: int) -> dict[str, float]:
        """Of each term that was looked at, over this many steps."""
        return {name: value / steps for name, value in self._sums.items()}

    def clear(self) -> None:
        """Start an epoch."""
        self._sums.clear()

    def state(self) -> dict[str, float]:
        """The sums; what was noted has to be looked at before."""
        return dict(self._sums)

    def load(self, state: Mapping[str, float]) -> None:
        """Restore what ``state`` returned."""
        self._sums = dict(state)


def _detached(value: Any) -> float | Tensor:
    return value.detach().reshape(()) if isinstance(value, Tensor) else float(value)


def read(noted: Iterable[Mapping[str, float | Tensor]]) -> list[dict[str, float]]:
    """The same with every scalar tensor read: one wait for each number format, not for each number."""
    rows = [dict(row) for row in noted]
    places: dict[tuple[torch.dtype, torch.device], list[tuple[int, str, Tensor]]] = {}
    for position, row in enumerate(rows):
        for name, value in row.items():
            if isinstance(value, Tensor):
                found = places.setdefault((value.dtype, value.device), [])
                found.append((position, name, value))
    for found in places.values():
        values = torch.stack([value for _, _, value in found]).tolist()
        for (position, name, _), number in zip(found, values, strict=True):
            rows[position][name] = number
    return [{name: float(value) for name, value in row.items()} for row in rows]
