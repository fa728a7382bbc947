"""Whether the variants of an ablation were given the same: optimizer steps and images per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolchain.ablation.outcome import Outcome


@dataclass(frozen=True)
class Budget:
    """What one run may spend on training, all its stages together."""

    steps: int
    images: int

    def __str__(self) -> str:
        batch = self.images / self.steps if self.steps else 0.0
        return f"{self.steps:,} steps of {batch:g} images"


def budget_of(outcome: Outcome) -> Budget:
    """Steps of the student, and the images in them."""
    return Budget(
        sum(stage.steps for stage in outcome.trained),
        sum(stage.steps * stage.batch_size for stage in outcome.trained),
    )


def findings(outcomes: Sequence[Outcome]) -> list[str]:
    """Sentences about the budgets: one where all are equal, else one for each that is not alone.

    Seconds are no part of it: a method may cost more per step, which its own column says.
    """
    variants: dict[Budget, dict[str, None]] = {}
    for outcome in outcomes:
        variants.setdefault(budget_of(outcome), {})[outcome.variant] = None
    if len(variants) == 1:
        return [f"Budgets are equal: every run trained for {next(iter(variants))}."]
    told = "; ".join(f"{', '.join(names)}: {budget}" for budget, names in variants.items())
    return (
        [f"Budgets are NOT equal, so differences are not the method's alone: {told}."]
        if told
        else []
    )


def unequal_sizes(outcomes: Sequence[Outcome]) -> str | None:
    """A sentence where variants ended with students of different sizes; None where they did not."""
    macs: dict[str, list[int]] = {}
    for outcome in outcomes:
        macs.setdefault(outcome.variant, []).append(outcome.macs)
    largest, smallest = (pick(max(each) for each in macs.values()) for pick in (max, min))
    if largest <= 1.02 * smallest:
        return None
    return f"Students differ in size, which accuracy is to be read with: {smallest:,} to {largest:,} MACs."
