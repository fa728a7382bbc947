"""From a recipe to its analysis: the stages before the teaching one, then the measurement."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import ConfigError
from toolchain.ablation.variants import Teaching, require_teachings

if TYPE_CHECKING:
    from toolchain.analysis.record import Analysis
    from toolchain.recipe.schema import Recipe
    from toolchain.training.progress import Progress


def analyze_recipe(
    recipe: Recipe,
    *,
    stage: str | None,
    epochs: float,
    every: int | None,
    probes: int,
    images: int,
    spots: str | None,
    out: Path,
    progress: Progress,
) -> tuple[Analysis, Path]:
    """Measure what the recipe's teaching stage is given; returns that and the folder with the pages.

    Raises:
        ConfigError: No stage distils, or not the one that is asked for.
    """
    from toolchain.chain import check_order

    place = chosen(recipe, stage)
    check_order(recipe.stages)
    if recipe.threads is not None:
        import torch

        torch.set_num_threads(recipe.threads)
    from toolchain.analysis.page import read
    from toolchain.analysis.stage import Analyze
    from toolchain.runs.artifacts import RunContext, run_stages

    before = recipe.model_copy(update={"stages": recipe.stages[: place.position]})
    source = run_stages(before, out, progress=progress)
    ctx = RunContext(recipe, out, progress, progress.say)
    teaching = recipe.stages[place.position]
    made = ctx.apply(
        Analyze(
            teaching=teaching,
            field=place.field,
            epochs=epochs,
            every=every,
            probes=probes,
            images=images,
            spots=spots,
        ),
        source,
    )
    folder = out / f"{recipe.name}-analysis-{made.key[:8]}"
    if not folder.exists():
        scratch = out / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(made.root, scratch, ignore=shutil.ignore_patterns("artifact.json"))
        scratch.rename(folder)
    return read(folder), folder


def chosen(recipe: Recipe, stage: str | None) -> Teaching:
    """The first place that distils, or the first in the stage of this name.

    Raises:
        ConfigError: There is none.
    """
    found = require_teachings(recipe)
    if stage is None:
        return found[0]
    mine = [place for place in found if recipe.stages[place.position].stage == stage]
    if not mine:
        names = ", ".join(dict.fromkeys(recipe.stages[place.position].stage for place in found))
        raise ConfigError(f"--stage: {stage!r} does not distil in {recipe.name}; accepted: {names}")
    return mine[0]
