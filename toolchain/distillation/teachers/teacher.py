"""What every teacher does: it gives features and logits for a batch, and no gradient.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Teacher(Protocol):
    """Gives features and logits for a batch, without gradient."""

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        """What the teacher computes at ``spots`` for these images; detached."""
        ...


@runtime_checkable
class MovingTeacher(Protocol):
    """A teacher that changes while it teaches, in a state of its own."""

    def follow(self, step: int) -> None:
        """Take in the student as it is before ``step``, which counts from 0; once in each step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
