"""``compress-deploy plan``: what can be cut, before any hours are spent."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.commands.options import Overrides, RecipePath


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show what can be cut before any hours are spent.

    Prints each group of channels with its share of the network, what cannot be cut and why, and the
    smallest network within reach. Exit status 1 when a goal is out of reach.
    """
    from toolchain.recipe.reading import load_recipe

    loaded = load_recipe(recipe, overrides or [])

    from toolchain.chain import check_order
    from toolchain.structure.preflight import plan_recipe

    check_order(loaded.stages)

    raise typer.Exit(plan_recipe(loaded, as_json=as_json))
