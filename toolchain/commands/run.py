"""``compress-deploy run``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import Overrides, RecipePath


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for artifacts and results.")] = Path("runs"),
    allow_missed: Annotated[
        bool, typer.Option("--allow-missed", help="Exit 0 even if a goal was missed.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; short for --set threads=N.", show_default=False),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines instead of a moving display.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Compress a teacher as the recipe says.

    Trains, cuts, quantizes, exports, verifies against the teacher and measures; leaves a bundle and
    a report in the output folder.
    """
    from toolchain.recipe.reading import load_recipe
    from toolchain.training.progress import Progress

    given = [*(overrides or []), *([f"threads={threads}"] if threads is not None else [])]
    loaded = load_recipe(recipe, given)

    from toolchain.chain import run_recipe

    progress = Progress(plain=True if plain else None, quiet=quiet)
    raise typer.Exit(run_recipe(loaded, out=out, allow_missed=allow_missed, progress=progress))
