"""``compress-deploy recipe``: look at a recipe, or at what a recipe can say."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.commands.options import Overrides, RecipePath

app = typer.Typer(
    help="Look at a recipe, or at what a recipe can say.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("show")
def show(
    recipe: RecipePath,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Also every value that is a default.")
    ] = False,
) -> None:
    """Print a checked recipe as YAML.

    Overrides are applied and paths are absolute.
    """
    from toolchain.recipe.reading import dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or [], need_files=False)
    print(dump_recipe(loaded, defaults=resolved), end="")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes.

    Editors use it to complete and check YAML.
    """
    import json

    from toolchain.recipe.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
