"""DDSL's student: another objective, minimized under ADMM until the masks are fixed, and on with them.

    steps 0 .. f T     L(W) + rho / 2 |W - Z + U|^2, the second part by its proximal step after the
                       optimizer's;  every `every` steps a Z-step and the dual update
    steps f T .. T     the channels with Z_g = 0 are masked, and L(W) alone is minimized

Liu et al. 2022 (IEEE TPAMI 45(3), doc. 9804342); the split into two parts is a **reconstruction**, after
"the groups are physically removed, then short fine-tuning with frozen structure".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.dean.sparsifier import AdmmSparsifier
from toolchain.structure.masks import hidden_share
from toolchain.training.objective import Batch, Objective, Update

Mask = Callable[[Mapping[str, Sequence[int]]], None]


class PruningByAdmm:
    """An objective whose student update is drawn to a sparse copy.

    Args:
        network: What is pruned.
        base: Its loss; the last of its updates is the student's.
        sparsifier: Z, U and the budget.
        mask: Hides the channels that are not kept, given those that are, by group.
        step_size: eta of the proximal step at a step (from 0) of so many.
        every: Steps between two Z-steps.
        fixed_from: Share of the training, in [0, 1], after which the masks are fixed.
        say: Prints a line for people.
    """

    def __init__(
        self,
        network: nn.Module,
        base: Objective,
        sparsifier: AdmmSparsifier,
        mask: Mask,
        *,
        step_size: Callable[[int, int], float],
        every: int = 50,
        fixed_from: float = 0.5,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._network, self._base, self._sparsifier = network, base, sparsifier
        self._mask, self._every, self._fixed_from, self._say = mask, every, fixed_from, say
        self._fixed, self._sparsity = False, 0.0
        self._step_size, self._eta = step_size, 0.0
        *others, student = base.updates
        drawn = replace(student, loss=self._told(student.loss), after=self._after(student.after))
        self.updates: Sequence[Update] = (*others, drawn)

    def begin_step(self, step: int, total_steps: int) -> None:
        """A Z-step when its time has come, with the strengths that were asked for before."""
        self._base.begin_step(step, total_steps)
        self._eta = self._step_size(step, total_steps)
        if self._fixed:
            return
        if step >= round(self._fixed_from * total_steps):
            self.finish()
        elif step % self._every == 0:
            self._sparsity = 1 - _share(self._sparsifier.z_step().widths, self._sparsifier)

    def finish(self) -> None:
        """Fix the masks, if they are not yet.

        Raises:
            StructureError: The goals are out of reach.
        """
        if self._fixed:
            return
        self._sparsifier.admm.to_device()
        kept, met = self._sparsifier.fix()
        if not met:
            self._say(
                "ddsl-prune: the multiplier had not met the goals when the masks were fixed; the weakest "
                "channels that were left were cut too; more epochs or a lower fixed_from reach them softly"
            )
        self._mask(kept.channels)
        self._fixed, self._sparsity = True, hidden_share(self._network)

    def trail(self) -> Mapping[str, float | Tensor]:
        """The base's."""
        return self._base.trail()

    def state_dict(self) -> dict[str, Any]:
        """Also Z, U and what is kept; the masks are in the network."""
        return {
            "base": self._base.state_dict(),
            "sparsifier": self._sparsifier.state_dict(),
            "fixed": self._fixed,
            "sparsity": self._sparsity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._base.load_state_dict(state["base"])
        self._sparsifier.admm.to_device()
        self._sparsifier.load_state_dict(state["sparsifier"])
        self._fixed, self._sparsity = state["fixed"], state["sparsity"]

    def status(self) -> dict[str, float]:
        """The base's numbers; the sparsity of channels of Z, later that of the weights."""
        return {**self._base.status(), "sparsity": self._sparsity}

    def _told(
        self, loss: Callable[[Batch], tuple[Tensor, Mapping[str, float | Tensor]]]
    ) -> Callable[[Batch], tuple[Tensor, Mapping[str, float | Tensor]]]:
        """The loss, and in the log how far W is from its sparse copy."""

        def with_penalty(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            total, terms = loss(batch)
            if self._fixed:
                return total, terms
            with torch.no_grad():
                return total, {**terms, "admm": self._sparsifier.admm.penalty()}

        return with_penalty

    def _after(self, before: Callable[[], None] | None) -> Callable[[], None]:
        def approach() -> None:
            if before is not None:
                before()
            if not self._fixed:
                self._sparsifier.admm.approach(self._eta)

        return approach


def _share(widths: Mapping[str, int], sparsifier: AdmmSparsifier) -> float:
    """Channels that are left, as a share."""
    return sum(widths.values()) / max(1, sum(sparsifier.budget.channels.values()))
