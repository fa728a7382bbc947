"""The papers' claims held against what was measured; printed as seen, whatever that is.

Distillability grows with depth and falls with training, and a dean delays the fall (Liu et al. 2022, IEEE
TPAMI 45(3)). Axes: L layers, K probe batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics.student_t import mean_interval
from toolchain.analysis.probing import Probed, samples
from toolchain.analysis.rank_correlation import Correlation, correlate
from toolchain.analysis.sparsities import Damage
from toolchain.runs.training_logs import MOVED, why_unmoved


@dataclass(frozen=True)
class Change:
    """How far the mean over the layers moved between two times.

    Attributes:
        first: Mean at the first time.
        last: At the last.
        interval: 95 % of last - first, over the probe batches; None for one batch.
        fell: Layers whose mean is lower at the last time.
        n: Layers.
    """

    first: float
    last: float
    interval: tuple[float, float] | None
    fell: int
    n: int

    @property
    def finding(self) -> str:
        """``falls``, ``grows``, or that neither can be shown."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "no change can be shown"
        return "falls" if self.interval[1] < 0 else "grows"


def with_depth(found: Mapping[str, Sequence[float]]) -> Correlation | None:
    """Distillability against depth (place in the network); None for fewer than three layers."""
    if len(found) < 3:
        return None
    values_LK = samples(found)
    return correlate(np.arange(len(values_LK), dtype=np.float64), values_LK)


def with_training(seen: Sequence[Probed]) -> Change | None:
    """Distillability by layer at the first and the last time; None for a single time."""
    if len(seen) < 2:
        return None
    first, last = seen[0], seen[-1]
    both = [name for name in first.layers if name in last.layers]
    if not both:
        return None
    before_LK = samples({name: first.layers[name] for name in both})
    after_LK = samples({name: last.layers[name] for name in both})
    change_K = (after_LK - before_LK).mean(0)
    fell = int((after_LK.mean(1) < before_LK.mean(1)).sum())
    return Change(
        float(before_LK.mean()),
        float(after_LK.mean()),
        mean_interval(change_K.tolist()),
        fell,
        len(both),
    )


@dataclass(frozen=True)
class Delay:
    """How much more distillability a controller leaves than fixed strengths, the mean over the layers.

    Attributes:
        fell: By how much it fell at fixed strength, from the first time to the last.
        more: At the last time under the controller, less at fixed strength.
        interval: 95 % of ``more``, over the probe batches that both were measured on; None for one.
        higher: Layers whose mean is higher under the controller.
        n: Layers.
    """

    fell: float
    more: float
    interval: tuple[float, float] | None
    higher: int
    n: int

    @property
    def finding(self) -> str:
        """``delays the fall``, ``hastens it``, that neither can be shown, or that nothing fell."""
        if self.fell <= 0:
            return "at fixed strength it did not fall"
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "that it delays the fall cannot be shown"
        return "delays the fall" if self.more > 0 else "hastens the fall"


def delay(fixed: Sequence[Probed], other: Sequence[Probed]) -> Delay | None:
    """The same start and the same probe batches, at the last step; None where that step differs."""
    if len(fixed) < 2 or not other or fixed[-1].step != other[-1].step:
        return None
    parts = fixed[0].layers, fixed[-1].layers, other[-1].layers
    every = [name for name in parts[0] if name in parts[1] and name in parts[2]]
    if not every:
        return None
    start_LK, fixed_LK, other_LK = (samples({name: part[name] for name in every}) for part in parts)
    more_LK = other_LK - fixed_LK
    return Delay(
        float((start_LK - fixed_LK).mean()),
        float(more_LK.mean()),
        mean_interval(more_LK.mean(0).tolist()),
        int((more_LK.mean(1) > 0).sum()),
        len(every),
    )


def sparsability_with_depth(found: Sequence[Damage]) -> Correlation | None:
    """Damage at the highest sparsity against depth; None for fewer than three groups."""
    if not found:
        return None
    highest = max(each.sparsity for each in found)
    losses_L = [each.loss for each in found if each.sparsity == highest]
    if len(losses_L) < 3:
        return None
    return correlate(np.arange(len(losses_L), dtype=np.float64), np.array(losses_L)[:, None])


def sentences(
    seen: Sequence[Probed],
    sparsability: Mapping[str, Sequence[Damage]],
    others: Mapping[str, Sequence[Probed]] | None = None,
    never: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """What was seen, one sentence a claim and time.

    ``never`` says by controller what it never did (``toolchain.runs.training_logs.never``): where no
    strength moved there is nothing to compare.
    """
    said = []
    for probed in _ends(seen):
        by_layer, by_term = with_depth(probed.layers), with_depth(probed.terms)
        for what, correlation in (("layers", by_layer), ("terms at their spots", by_term)):
            if correlation is not None:
                said.append(
                    f"Distillability with depth at step {probed.step:,}, over {correlation.n} {what}: "
                    f"{_told(correlation)}."
                )
    change = with_training(seen)
    if change is not None:
        said.append(
            f"Distillability with training, mean over {change.n} layers: {change.first:+.3f} before, "
            f"{change.last:+.3f} after{_spread(change.interval)}; lower in {change.fell} of {change.n} "
            f"layers: {change.finding}."
        )
    for name, other in (others or {}).items():
        left_out = (never or {}).get(name, ())
        found = delay(seen, other)
        if MOVED in left_out:
            why, remedy = why_unmoved(left_out)
            said.append(
                f"Under {name} no strength ever moved from the recipe's ({why}), so there is nothing to "
                f"compare; {remedy}."
            )
        elif found is not None:
            said.append(
                f"Distillability under {name} less that at fixed strength, at step {seen[-1].step:,}, mean "
                f"over {found.n} layers: {found.more:+.3f}{_spread(found.interval)}, where it fell by "
                f"{found.fell:.3f} at fixed strength; higher in {found.higher} of {found.n} layers: "
                f"{found.finding}. One training each: the interval does not cover another seed."
            )
    for when, damages in sparsability.items():
        cost = sparsability_with_depth(damages)
        if cost is not None:
            highest = max(each.sparsity for each in damages)
            said.append(
                f"Sparsability {when}: the cost of {highest:.0%} of one group's channels, with depth over "
                f"{cost.n} groups: {_told(cost)}."
            )
    return said


def _spread(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    return f", 95 % [{interval[0]:+.3f}, {interval[1]:+.3f}] over the probes"


def _ends(seen: Sequence[Probed]) -> Sequence[Probed]:
    return seen if len(seen) < 2 else (seen[0], seen[-1])


def _told(correlation: Correlation) -> str:
    if math.isnan(correlation.rho):
        return "it does not vary, so no trend can be shown"
    interval = ""
    if correlation.interval is not None:
        low, high = correlation.interval
        interval = f", 95 % [{low:+.2f}, {high:+.2f}] over the probes"
    return (
        f"rank correlation {correlation.rho:+.2f}{interval}, p = {correlation.p:.2g}: "
        f"{correlation.finding}"
    )
