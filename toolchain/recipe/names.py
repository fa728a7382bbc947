"""The names that a recipe can use, each with a line about it, for ``compress-deploy list``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, get_args

from toolchain.models.arguments import call_form
from toolchain.recipe.schema import DataConfig, StructureConfig
from toolchain.stages import STAGES

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe

# Three columns before what is said about a name; nothing else has so much to tell.
LOSS_HEAD = ("loss", "strength", "source", "about")
SOURCED_HEAD = ("source", "about")
_IMPORTANCES = {
    "l1": "sum of the magnitudes of a channel's weights",
    "l2": "root of the sum of their squares",
    "taylor": "first-order estimate of how the loss changes without the channel",
    "bn_scale": "magnitude of the batch-norm factor behind the channel",
}


def named(what: str) -> list[tuple[str, str]]:
    """Names and descriptions of ``models``, ``stages``, ``data`` or ``importances``.

    A model has a second row, without its name: the arguments that it takes, with their defaults.
    """
    if what == "models":
        from toolchain.models.registry import builders

        return [row for name, builder in builders().items() for row in _model(name, builder)]
    if what == "importances":
        accepted = get_args(StructureConfig.model_fields["importance"].annotation)
        return [(name, _IMPORTANCES[name]) for name in accepted]
    field, kinds = ("stage", STAGES) if what == "stages" else ("kind", get_args(DataConfig))
    return [(get_args(kind.model_fields[field].annotation)[0], _first_line(kind)) for kind in kinds]


def sourced(what: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of ``losses``, ``controllers`` or ``teachers``: names, who described them, about.

    A loss has its customary strength too, which nothing applies silently.
    """
    if what == "losses":
        from toolchain.distillation.losses.entry import LOSSES

        return LOSS_HEAD, [
            (
                entry.name,
                "-" if entry.default_strength is None else f"{entry.default_strength:g}",
                entry.source,
                _first_line(entry.function or entry.build or object),
            )
            for entry in LOSSES.values()
        ]
    if what == "controllers":
        from toolchain.distillation.controllers.controller import CONTROLLERS

        return ("controller", *SOURCED_HEAD), [
            (e.name, e.source or "-", e.about) for e in CONTROLLERS.values()
        ]
    from toolchain.distillation.teachers.registry import TEACHERS

    return ("kind", *SOURCED_HEAD), [(e.name, e.source or "-", e.about) for e in TEACHERS.values()]


def spots(recipe: Recipe) -> dict[str, list[tuple[str, str]]]:
    """Every spot with its shape for one image, of each network that the recipe names, by its place.

    A stage that cuts removes channels, and with ``structure.branches`` whole branches with their spots.

    Raises:
        DataError: A network does not take the data's images.
        ConfigError: A network cannot be built.
    """
    import torch

    from toolchain.data.loading import load_data
    from toolchain.distillation.spots import spots_of
    from toolchain.stages import NewStudent
    from toolchain.starting import build_network, logits_width

    shape = load_data(recipe.data).input_shape
    origins = {"model": recipe.model} | {
        f"stages[{place}] (student)": stage
        for place, stage in enumerate(recipe.stages)
        if isinstance(stage, NewStudent)
    }
    found = {}
    for where, origin in origins.items():
        network = build_network(origin, where, recipe.seed)
        logits_width(network, shape, where)
        seen = spots_of(network, torch.zeros(2, *shape))
        found[where] = [(name, " x ".join(map(str, size[1:]))) for name, size in seen.items()]
    return found


def _model(name: str, builder: Callable[..., object]) -> Iterator[tuple[str, str]]:
    yield name, _first_line(builder)
    yield "", f"args: {call_form('', builder)[1:-1]}"


def _first_line(described: object) -> str:
    return (inspect.getdoc(described) or "").partition("\n")[0].replace("``", "`")
