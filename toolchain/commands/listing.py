"""``compress-deploy list``: the names that a recipe can use."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import Overrides


class Listable(Enum):
    """What ``list`` can list."""

    models = "models"
    stages = "stages"
    data = "data"
    importances = "importances"
    losses = "losses"
    controllers = "controllers"
    teachers = "teachers"
    spots = "spots"


SOURCED = (Listable.losses, Listable.controllers, Listable.teachers)


def list_names(
    what: Annotated[Listable, typer.Argument(help="What to list.", show_default=False)],
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]", help="Whose networks' spots: a YAML recipe.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """List the names that a recipe can use.

    Of distillation: losses (what), with the strength that is customary in the literature; spots (where),
    which are those of a recipe's networks, with their shapes; teachers (whose); controllers (how much). Each
    with its source.
    """
    from deploy.errors import ConfigError

    if (what is Listable.spots) != (recipe is not None):
        raise ConfigError(
            f"list {what.value}: {'no recipe' if recipe is None else f'{recipe}'} given; accepted: "
            "`list spots RECIPE`, and any other list without one"
        )
    if recipe is not None:
        _print_spots(recipe, overrides or [])
        return
    from toolchain.recipe.names import named, sourced

    if what in SOURCED:
        head, rows = sourced(what.value)
        _print([head, *rows])
    else:
        _print(named(what.value))


def _print_spots(path: Path, overrides: list[str]) -> None:
    from toolchain.recipe.names import spots
    from toolchain.recipe.reading import load_recipe

    recipe = load_recipe(path, overrides)
    for where, rows in spots(recipe).items():
        print(f"{where}: spot, shape for one image")
        _print([(f"  {name}", shape) for name, shape in rows])


def _print(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the last is as long as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())
