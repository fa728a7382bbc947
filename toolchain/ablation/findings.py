"""What is known of an ablation, finished or not, and what it shows in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from toolchain.ablation.budget import findings, unequal_sizes
from toolchain.ablation.outcome import Outcome
from toolchain.ablation.paired import Paired, paired
from toolchain.ablation.variants import Variant
from toolchain.ablation.workers import Failure
from toolchain.runs.training_logs import FALLBACK, MOVED, Course, never, why_unmoved

DEAN, FIXED = "dean", "fixed"
DISTILLED, LOGITS = "distilled.", "logits"
# A policy that leaves out fewer samples than this decides nothing that could be measured.
HARDLY = 0.01


@dataclass(frozen=True)
class Ablation:
    """What is known of an ablation, finished or not.

    Attributes:
        recipe: Its name.
        title: What the data is called.
        variants: All of them, in their order.
        seeds: Each variant is to run with.
        baselines: What the others are compared with.
        outcomes: Of the runs that came to an end, in any order.
        failures: Of those that did not.
        at_once: How many runs shared the machine.
        command: That makes this page.
        environment: Of the machine, as ``benchmarks.environment`` records it.
        installed: Versions of what the numbers may depend on.
    """

    recipe: str
    title: str
    variants: Sequence[Variant]
    seeds: Sequence[int]
    baselines: Sequence[str]
    outcomes: Sequence[Outcome]
    failures: Sequence[Failure]
    at_once: int
    command: str
    environment: Mapping[str, Any]
    installed: Mapping[str, str]

    def of(self, name: str) -> list[Outcome]:
        """The variant's outcomes by seed."""
        return sorted((o for o in self.outcomes if o.variant == name), key=lambda o: o.seed)

    def course(self, name: str) -> dict[str, Course]:
        """What the controllers of a variant's trainings did, mean over the seeds.

        By the name of the number, with its stage in front where several stages have a controller.
        """
        return {
            f"{stage}{': ' if stage else ''}{key}": Course(
                *(fmean(values) for values in zip(*courses, strict=True))
            )
            for stage, trails in self._trails(name).items()
            for key in dict.fromkeys(key for trail in trails for key in trail)
            if (courses := [trail[key] for trail in trails if key in trail])
        }

    def _trails(self, name: str) -> dict[str, list[Mapping[str, Course]]]:
        """What the controller of each stage set, run by run; the stage is empty where only one has any."""
        found: dict[str, list[Mapping[str, Course]]] = {}
        for outcome in self.of(name):
            seen: Counter[str] = Counter()
            for one in outcome.trained:
                if one.trail:
                    seen[one.stage] += 1
                    again = f" {seen[one.stage]}" if seen[one.stage] > 1 else ""
                    found.setdefault(f"{one.stage}{again}", []).append(one.trail)
        return {"": next(iter(found.values()))} if len(found) == 1 else found

    def _taught(self) -> Iterator[tuple[str, list[Mapping[str, Course]]]]:
        """Every variant, and stage where several have a controller, with what that set, run by run."""
        for name in (variant.name for variant in self.variants):
            for stage, trails in self._trails(name).items():
                yield f"{name}, in {stage}" if stage else name, trails

    def _doubted(self) -> Iterator[str]:
        """How much of a dean's strengths was the recipe's."""
        for who, trails in self._taught():
            shares = [trail[FALLBACK].mean for trail in trails if FALLBACK in trail]
            if shares and fmean(shares) > 0:
                yield (
                    f"{who}: {fmean(shares):.0%} of the strengths, in the mean over all steps, were the "
                    "recipe's, for want of evidence that moving them helps."
                )

    def _idle(self) -> Iterator[str]:
        """Where a dean moved nothing: for want of probes, or because they were noise."""
        for who, trails in self._taught():
            found = [never(trail) for trail in trails]
            reasons = Counter(why_unmoved(one) for one in found if MOVED in one)
            for (why, remedy), count in reasons.items():
                yield (
                    f"{who}: the dean never moved a strength in {count} of {_runs(len(found))} ({why}), so "
                    f"this was fixed strength, on fewer images; {remedy}."
                )

    def _spots(self) -> Iterator[str]:
        """Where a policy left samples out: at shallow spots, as its authors saw, or hardly anywhere."""
        for who, trails in self._taught():
            runs = [
                {
                    key.removeprefix(DISTILLED): 1 - course.mean
                    for key, course in trail.items()
                    if key.startswith(DISTILLED)
                }
                for trail in trails
            ]
            if said := _left_out([left_out for left_out in runs if left_out]):
                yield f"{who}: {said}"

    @property
    def missing(self) -> int:
        """Runs that neither ended nor failed."""
        return len(self.variants) * len(self.seeds) - len(self.outcomes) - len(self.failures)

    def comparisons(self) -> list[Paired]:
        """Every variant against every baseline, on test top-1."""
        values = {v.name: {o.seed: o.test_top1 for o in self.of(v.name)} for v in self.variants}
        names = [variant.name for variant in self.variants]
        pairs = [(name, base) for base in self.baselines for name in names if name != base]
        # What the dean is for is asked whatever the baseline.
        if DEAN in names and FIXED in names and (DEAN, FIXED) not in pairs:
            if (FIXED, DEAN) in pairs:
                pairs.remove((FIXED, DEAN))
            pairs.insert(0, (DEAN, FIXED))
        return [found for name, base in pairs if (found := paired(values, name, base))]

    def sentences(self) -> list[str]:
        """What the ablation shows, in words: budgets, sizes, differences, and what is missing."""
        said = [*findings(self.outcomes)]
        if self.outcomes and (sizes := unequal_sizes(self.outcomes)):
            said.append(sizes)
        found = self.comparisons()
        if found and all(one.n == 1 for one in found):
            said.append(
                "One seed each: differences have no spread, so none can be shown; run more seeds."
            )
        else:
            said += [one.sentence for one in found]
        for one in found:
            trails = [trail for stage in self._trails(one.name).values() for trail in stage]
            idle = bool(trails) and all(MOVED in never(trail) for trail in trails)
            if (one.name, one.baseline) == (DEAN, FIXED) and not one.better and not idle:
                said.append(f"The dean {_no_better(one)} fixed strength here.")
        said += self._doubted()
        said += self._idle()
        said += self._spots()
        said += [f"FAILED {one.variant}, seed {one.seed}: {one.reason}" for one in self.failures]
        if self.missing:
            said.append(
                f"{self.missing} of {len(self.variants) * len(self.seeds)} runs are missing."
            )
        return said


def _left_out(runs: Sequence[Mapping[str, float]]) -> str:
    """What a policy left out at which spot, of shares by spot, in words; empty where nothing is to say."""
    if not runs:
        return ""
    most = max(max(left_out.values()) for left_out in runs)
    if most < HARDLY:
        return (
            f"at most {most:.2%} of the samples were left out at any spot, so this was all but fixed "
            "strength; with controller_options {homo: false} the policy starts undecided."
        )
    inner = [spot for spot in runs[0] if spot != LOGITS]
    if len(inner) < 2:
        return ""
    first, last = inner[0], inner[-1]
    more = sum(left_out[first] > left_out[last] for left_out in runs)
    shallow, deep = (fmean(left_out[spot] for left_out in runs) for spot in (first, last))
    return (
        f"{shallow:.1%} of the samples were left out at {first}, the first spot, and {deep:.1%} at {last}, "
        f"the last before the logits; more at the first in {more} of {_runs(len(runs))}."
    )


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def _no_better(one: Paired) -> str:
    if one.worse:
        return "is worse than"
    return "is not shown to beat" if one.mean > 0 else "does not beat"
