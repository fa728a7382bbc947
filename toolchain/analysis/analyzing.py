"""From a recipe to its analysis: the stages before the teaching one, then the measurement by controller."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import ConfigError
from toolchain.ablation.equal_steps import with_equal_steps
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.registry import unknown
from toolchain.distillation.teachings import Teaching, require_teachings

if TYPE_CHECKING:
    from toolchain.analysis.record import Analysis
    from toolchain.recipe.schema import Recipe
    from toolchain.runs.artifacts import Artifact
    from toolchain.training.progress import Progress

# Strengths that nobody moves are what every other controller is held against.
FIXED = "fixed"


def analyze_recipe(
    recipe: Recipe,
    *,
    stage: str | None,
    epochs: float,
    every: int | None,
    probes: int,
    images: int,
    spots: str | None,
    controllers: Sequence[str] = (),
    out: Path,
    command: str = "",
    progress: Progress,
) -> tuple[Analysis, Path]:
    """Measure what the recipe's teaching stage is given; returns that and the folder with the pages.

    ``command`` is what the page says it was written by.

    With ``controllers`` the training is repeated under each, from the same network, for as many steps, and
    looked at on the same probe batches, of images that all of them train on.

    Raises:
        ConfigError: No stage distils, or not the one that is asked for; a controller is unknown, or asked for
            without a training; a spot that a network does not have; too few samples for a controller.
    """
    from toolchain.chain import check_order

    place = chosen(recipe, stage)
    check_order(recipe.stages)
    names = list(dict.fromkeys([FIXED, *controllers]))
    recipes = {name: _under(recipe, place, name, epochs) for name in names}
    if len(names) > 1 and not epochs:
        raise ConfigError(
            f"--controllers: {', '.join(names[1:])} asked for and no training; a controller shows in what "
            "training does; give --epochs"
        )
    if recipe.threads is not None:
        import torch

        torch.set_num_threads(recipe.threads)
    from toolchain.analysis.page import read, write
    from toolchain.analysis.stage import Analyze, looked_at
    from toolchain.distillation.preflight import Preflight
    from toolchain.runs.artifacts import RunContext, run_stages
    from toolchain.student import data_of

    preflight = Preflight()
    for under in recipes.values():
        preflight.check(under)
    if spots is not None:
        preflight.check_loss(recipe, place, looked_at(spots), "--spots")
    before = recipe.model_copy(update={"stages": recipe.stages[: place.position]})
    source = run_stages(before, out, progress=progress)
    ctx = RunContext(recipe, out, progress, progress.say)
    aside = max(_share(each, place) for each in recipes.values())
    made: dict[str, Artifact] = {}
    for name, under in recipes.items():
        if len(names) > 1:
            ctx.say(f"analyze: under {name}")
            under = with_equal_steps(under, data_of(ctx))
        teaching: Any = under.stages[place.position]
        made[name] = ctx.apply(
            Analyze(
                teaching=teaching,
                field=place.field,
                epochs=teaching.epochs if epochs else 0,
                every=every,
                probes=probes,
                aside=aside,
                images=images if name == FIXED else 0,
                spots=spots,
            ),
            source,
        )
    folder = out / f"{recipe.name}-analysis-{_key(made)[:8]}"
    if not folder.exists():
        scratch = out / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        for name, artifact in made.items():
            place_in = scratch if name == FIXED else scratch / name
            shutil.copytree(artifact.root, place_in, ignore=shutil.ignore_patterns("artifact.json"))
        others = {name: read(scratch / name) for name in made if name != FIXED}
        told = replace(
            read(scratch),
            command=command,
            others={name: other.seen for name, other in others.items()},
            others_never={name: other.never for name, other in others.items() if other.never},
        )
        write(told, scratch)
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


def _under(recipe: Recipe, place: Teaching, controller: str, epochs: float) -> Recipe:
    """The recipe with this controller in that place, training for so long.

    Raises:
        ConfigError: It is unknown, or not made for what the recipe distils.
    """
    distil = place.distil
    options: Mapping[str, Any] = {}
    if distil.controller == controller:
        options = distil.controller_options
    if controller not in CONTROLLERS:
        raise ConfigError(f"--controllers: {unknown(controller, CONTROLLERS)}")
    CONTROLLERS[controller].check(options)
    changed: dict[str, Any] = {
        place.field: distil.model_copy(
            update={"controller": controller, "controller_options": options}
        )
    }
    stages = list(recipe.stages)
    if epochs:
        changed["epochs"] = epochs
    stages[place.position] = stages[place.position].model_copy(update=changed)
    return recipe.model_copy(update={"stages": stages})


def _share(recipe: Recipe, place: Teaching) -> float:
    """What the controller in that place holds out of the training part."""
    distil: Any = getattr(recipe.stages[place.position], place.field)
    return CONTROLLERS.look_up(distil.controller).held_out_share(distil.controller_options)


def _key(made: Mapping[str, Artifact]) -> str:
    """Of one analysis its own; of several one that depends on all."""
    keys = [artifact.key for artifact in made.values()]
    return keys[0] if len(keys) == 1 else hashlib.sha256("".join(keys).encode()).hexdigest()
