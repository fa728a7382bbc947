"""As many optimizer steps for everybody: a controller that keeps images for itself gets longer epochs.

A controller that learns from held-out images (the dean) leaves fewer to the student, whose epochs are
shorter then. Compared at equal epochs it would train for fewer steps; here its epochs are counted in
those of all images: the same steps and learning rates, on fewer different images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.data.partition import hold_out
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.teachings import teachings

if TYPE_CHECKING:
    from toolchain.data.samples import Data
    from toolchain.recipe.schema import Recipe


def with_equal_steps(recipe: Recipe, data: Data) -> Recipe:
    """The recipe, with more epochs where a controller holds out images."""
    stages = list(recipe.stages)
    for place in teachings(recipe):
        entry = CONTROLLERS.look_up(place.distil.controller)
        stage = stages[place.position]
        batch_size = getattr(stage, "batch_size", None)
        if not entry.held_out or batch_size is None:
            continue
        share = entry.held_out_share(place.distil.controller_options)
        left, _ = hold_out(data, share, recipe.seed)
        steps = _steps(len(data.train), batch_size), _steps(len(left.train), batch_size)
        longer = {
            name: getattr(stage, name) * steps[0] / steps[1] for name in ("epochs", "warmup_epochs")
        }
        stages[place.position] = stage.model_copy(update=longer)
    return recipe.model_copy(update={"stages": stages})


def _steps(images: int, batch_size: int) -> int:
    return max(1, images // batch_size)
