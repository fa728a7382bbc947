"""``compress-deploy``: one verb per thing a user does.

Each verb imports what it needs when it runs, so that help answers at once. Results go to standard
output, everything about the way there to standard error. Exit status: 0 done, 1 something that the
user can fix or a goal that was missed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from deploy.errors import CompressDeployError

EXAMPLES = """Examples:

\b
  compress-deploy plan recipe.yaml
  compress-deploy run recipe.yaml --out runs
  compress-deploy run recipe.yaml --set data.root=cifar10 --set stages.pqk-prune.bits=4
  compress-deploy recipe show recipe.yaml --resolved
"""


class _Verbs(typer.core.TyperGroup):
    """Turns what a user can fix into one line and a status; a bug keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except CompressDeployError as error:
            print(f"compress-deploy: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print(
                "compress-deploy: interrupted; run the same command again to resume",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    name="compress-deploy",
    cls=_Verbs,
    help="Take a trained network to a slim, quantized, verified and measured student.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipe_app = typer.Typer(
    help="Look at a recipe, or at what a recipe can say.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(recipe_app, name="recipe")

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of the recipe, e.g. structure.align=8 or stages.recover.lr=0.01; "
        "the value is YAML. May be given several times.",
        show_default=False,
    ),
]


@app.command("run", epilog="Running the same command again resumes where it stopped.")
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

    from toolchain.stages import run_recipe

    progress = Progress(plain=True if plain else None, quiet=quiet)
    raise typer.Exit(run_recipe(loaded, out=out, allow_missed=allow_missed, progress=progress))


@app.command("plan")
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

    from toolchain.structure.preflight import plan_recipe

    raise typer.Exit(plan_recipe(loaded, as_json=as_json))


@recipe_app.command("show")
def recipe_show(
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


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes.

    Editors use it to complete and check YAML.
    """
    import json

    from toolchain.recipe.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


class Listable(Enum):
    """What ``list`` can list."""

    models = "models"
    stages = "stages"
    data = "data"
    importances = "importances"


@app.command("list")
def list_names(
    what: Annotated[Listable, typer.Argument(help="What to list.", show_default=False)],
) -> None:
    """List the names that a recipe can use."""
    from toolchain.recipe.names import named

    rows = named(what.value)
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        print(f"{name:<{width}}  {about}".rstrip())


@app.command("results")
def results(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that `run` wrote, as --out.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.md", help="Where the table goes.")],
) -> None:
    """Write a table of results from finished runs."""
    from toolchain.runs.table import write_table

    write_table(runs, out)


@app.command("version")
def version() -> None:
    """Print the versions of this program and its packages."""
    from toolchain.runs.artifacts import installed_versions

    for name, number in installed_versions().items():
        print(f"{name} {number}")


def main() -> None:
    """Entry point of the console script; ends the process with the exit status."""
    app()
