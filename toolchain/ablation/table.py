"""The page of an ablation in Markdown: what each variant reached, differences, budgets, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.ablation.budget import budget_of, findings, unequal_sizes
from toolchain.ablation.outcome import AS_SHIPPED, Outcome
from toolchain.ablation.paired import Paired, paired
from toolchain.ablation.variants import NONE, Variant
from toolchain.ablation.workers import Failure
from toolchain.runs.markdown import bullets, each, hardware, markdown_table, spread, versions

DEAN, FIXED = "dean", "fixed"
HEAD = (
    "variant",
    "n",
    "test top-1, %",
    "validation top-1, %",
    "MACs",
    "parameters",
    "steps",
    "images/s",
    "seconds",
    "seeds",
)


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

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each variant that came to an end at least once, under ``HEAD``."""
        return [_row(v.name, found) for v in self.variants if (found := self.of(v.name))]

    def sentences(self) -> list[str]:
        """What the ablation shows, in words: budgets, sizes, differences, and what is missing."""
        said = [*findings(self.outcomes)]
        if self.outcomes and (sizes := unequal_sizes(self.outcomes)):
            said.append(sizes)
        found = self.comparisons()
        said += [one.sentence for one in found]
        for one in found:
            if (one.name, one.baseline) == (DEAN, FIXED) and not one.better:
                how = "is worse than" if one.worse else "does not beat"
                said.append(f"The dean {how} fixed strength here.")
        said += [f"FAILED {one.variant}, seed {one.seed}: {one.reason}" for one in self.failures]
        if self.missing:
            said.append(
                f"{self.missing} of {len(self.variants) * len(self.seeds)} runs are missing."
            )
        return said


def markdown(ablation: Ablation) -> str:
    """The whole page."""
    parts = [f"# Ablation: {ablation.recipe}", bullets(_header(ablation))]
    if not ablation.outcomes:
        return "\n\n".join([*parts, bullets(ablation.sentences())]) + "\n"
    parts.append(markdown_table(HEAD, ablation.rows()))
    if len(ablation.seeds) > 1:
        parts.append("Mean ± standard deviation over the seeds (n - 1).")
    parts += ["## What it shows", bullets(ablation.sentences())]
    found = ablation.comparisons()
    if found:
        parts += [
            "## Differences on the same seed",
            markdown_table(_PAIRED_HEAD, [_paired_row(one) for one in found]),
        ]
    parts += ["## Variants", bullets(_described(v) for v in ablation.variants)]
    parts += ["## How it was measured", bullets(_method(ablation))]
    return "\n\n".join(parts) + "\n"


_PAIRED_HEAD = ("comparison", "n", "test top-1, points", "95 % interval", "by seed")


def _row(name: str, found: Sequence[Outcome]) -> tuple[str, ...]:
    def of(form: str, number: Callable[[Outcome], float]) -> str:
        return spread([number(outcome) for outcome in found], form)

    def same(form: str, number: Callable[[Outcome], float]) -> str:
        values = [number(outcome) for outcome in found]
        return of(form, number) if len(set(values)) > 1 else f"{values[0]:{form}}"

    return (
        name,
        str(len(found)),
        of(".2f", lambda o: o.test_top1),
        of(".2f", lambda o: o.validation_top1),
        same(",.0f", lambda o: o.macs),
        same(",.0f", lambda o: o.parameters),
        same(",.0f", lambda o: budget_of(o).steps),
        of(",.0f", lambda o: o.trained[-1].images_per_s if o.trained else 0.0),
        of(",.0f", lambda o: o.seconds),
        ", ".join(str(outcome.seed) for outcome in found),
    )


def _paired_row(one: Paired) -> tuple[str, ...]:
    interval = one.interval
    return (
        f"{one.name} - {one.baseline}",
        str(one.n),
        f"{one.mean:+.2f}",
        "none" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]",
        ", ".join(f"{seed}: {value:+.2f}" for seed, value in one.by_seed.items()),
    )


def _header(ablation: Ablation) -> list[str]:
    outcomes = ablation.outcomes
    record = {"environment": ablation.environment, "versions": ablation.installed}
    days = sorted({outcome.date[:10] for outcome in outcomes})
    seeds = ", ".join(map(str, ablation.seeds))
    lines = [
        *each("data", (f"{ablation.title}, fingerprint {o.data[:12]}" for o in outcomes)),
        *each("teacher", (f"{o.teacher_top1:.2f} % on the test part" for o in outcomes)),
        f"hardware: {hardware(record)}",
        *each("trained in", (outcome.precision for outcome in outcomes)),
        f"versions: {versions(record)}",
    ]
    if days:
        lines.append("measured: " + (days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"))
    return [*lines, f"seeds: {seeds}", f"written by: `{ablation.command}`"]


def _described(variant: Variant) -> str:
    if not variant.overrides:
        return f"{variant.name}: the recipe as it is"
    alone = "labels alone; " if variant.name == NONE else ""
    return f"{variant.name}: {alone}" + "; ".join(f"`{one}`" for one in variant.overrides)


def _method(ablation: Ablation) -> list[str]:
    images = ablation.outcomes[0].test_images
    shipped = {outcome.tested for outcome in ablation.outcomes}
    lines = [
        f"accuracy: {' or '.join(sorted(shipped))}, after the last epoch and never the best one, on the "
        f"{images:,} test images, which nothing before has read",
        "differences: seed by seed, which fixes the order of the images and their augmentation; the "
        "interval is Student's t over the seeds, for these test images",
        "a controller that holds training images out for itself (the dean) trains for as many steps as the "
        "others, on fewer different images",
        "seconds: of all stages up to the student, with validation; images/s: of the last training",
    ]
    if shipped == {AS_SHIPPED}:
        lines.append("validation: of the trained network, before it was exported")
    if ablation.at_once > 1:
        lines.append(
            f"{ablation.at_once} runs at a time shared the machine: their seconds and images/s say less "
            "than those of runs alone"
        )
    count = len(ablation.comparisons())
    if count > 2:
        lines.append(
            f"each of the {count} intervals holds for itself: one comparison in twenty excludes 0 "
            "where there is no difference"
        )
    return lines
