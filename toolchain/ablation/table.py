"""The page of an ablation in Markdown: what each variant reached, differences, budgets, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import yaml

from toolchain.ablation.budget import budget_of
from toolchain.ablation.findings import Ablation
from toolchain.ablation.outcome import AS_SHIPPED, Outcome
from toolchain.ablation.paired import Paired
from toolchain.ablation.variants import NONE, Variant
from toolchain.runs.markdown import bullets, each, hardware, markdown_table, spread, versions

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


def markdown(ablation: Ablation) -> str:
    """The whole page."""
    parts = [f"# Ablation: {ablation.recipe}", bullets(_header(ablation))]
    if not ablation.outcomes:
        return "\n\n".join([*parts, bullets(ablation.sentences())]) + "\n"
    parts.append(markdown_table(HEAD, rows(ablation)))
    if len(ablation.seeds) > 1:
        parts.append("Mean ± standard deviation over the seeds (n - 1).")
    parts += ["## What it shows", bullets(ablation.sentences())]
    found = ablation.comparisons()
    if found:
        parts += [
            "## Differences on the same seed",
            markdown_table(_PAIRED_HEAD, [_paired_row(one) for one in found]),
        ]
    decided = list(_decided(ablation))
    if decided:
        head = ("variant", "number", "first tenth", "last tenth", "all steps")
        parts += ["## What the controllers did", markdown_table(head, decided, left=2)]
    parts += ["## Variants", bullets(_described(v) for v in ablation.variants)]
    parts += ["## How it was measured", bullets(_method(ablation))]
    return "\n\n".join(parts) + "\n"


def rows(ablation: Ablation) -> list[tuple[str, ...]]:
    """A row for each variant that came to an end at least once, under ``HEAD``."""
    return [_row(v.name, found) for v in ablation.variants if (found := ablation.of(v.name))]


def _decided(ablation: Ablation) -> Iterator[tuple[str, ...]]:
    """What controllers set; strengths that never moved say nothing."""
    for variant in ablation.variants:
        for key, course in ablation.course(variant.name).items():
            shown = [f"{number:.4g}" for number in course]
            if not key.startswith("strength.") or len(set(shown)) > 1:
                yield variant.name, key, *shown


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
    alone = ""
    if variant.name == NONE:
        own = any(one.partition("=")[0].endswith(".pretrained") for one in variant.overrides)
        alone = f"labels alone{', and the in-network teacher of pqk-distil' if own else ''}; "
    return f"{variant.name}: {alone}" + "; ".join(f"`{_flow(one)}`" for one in variant.overrides)


def _flow(override: str) -> str:
    """An override with its value as people write it: ``losses=[{loss: kl, strength: 1.0}]``."""
    key, _, text = override.partition("=")
    value = yaml.safe_load(text)
    if isinstance(value, str):
        return f"{key}={value}"
    if not isinstance(value, list | dict):
        return override
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**16)
    return f"{key}={flow.strip()}"


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
