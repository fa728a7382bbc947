"""``compress-deploy ablate``: does a method help, at equal budget and beyond chance?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import Overrides, RecipePath, words

CONTROLLERS = "dean,fixed,none"


def ablate(
    recipe: RecipePath,
    controllers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Controllers of the strengths to compare, in every stage that distils; `none` is "
            f"labels alone. See `list controllers`. Default without --variants: {CONTROLLERS}.",
            show_default=False,
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Further variants: names, and under each what --set takes, as a list of KEY=VALUE "
            "or a mapping.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Of all these variants, only some.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each variant, from the recipe's seed upwards.")
    ] = 3,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="What the others are compared with. Default: fixed, else none, else the first.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in its process.")] = 1,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for artifacts and results.")] = Path("runs"),
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="A further place for the table.", show_default=False),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines instead of a moving display.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Compare ways of teaching at equal budget, seed by seed.

    Runs the recipe once for each variant and seed, and tests each last-epoch student once on the test
    part. Prints the mean and spread of each variant, and each difference from the baseline with its 95 %
    interval over the seeds and a sentence that says what it shows, also when that is nothing. Says so where
    variants trained for different numbers of steps.

    Runs share what they have in common, and a run that is there already is not repeated: the same command
    resumes, and with more seeds it adds them. A run that fails is reported, and the others go on; the exit
    status is 1 then. A recipe's goals are not judged here.
    """
    from deploy.errors import ConfigError
    from toolchain.ablation import variants as making
    from toolchain.recipe.reading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    names = words(controllers if controllers or variants else CONTROLLERS)
    if not names and not variants:
        raise ConfigError(
            f"--controllers: {controllers!r} names none; accepted e.g. {CONTROLLERS}; name one, or leave "
            "the option out"
        )
    every = [
        *(making.of_controllers(loaded, names) if names else []),
        *(making.of_file(variants) if variants else []),
    ]
    chosen = making.chosen(every, words(only))
    compared = making.baselines(chosen, words(baseline))

    from toolchain.ablation.grid import check_seeds, jobs_of, run_grid, show
    from toolchain.runs.markdown import shown_command
    from toolchain.training.progress import Progress

    progress = Progress(plain=True if plain else None, quiet=quiet)
    ablation = run_grid(
        loaded,
        jobs_of(recipe, overrides or [], chosen, check_seeds(loaded.seed, seeds)),
        chosen,
        baselines=compared,
        at_once=jobs,
        out=out,
        table=table,
        command=shown_command(
            "ablate",
            [recipe],
            {
                "--controllers": controllers or (None if variants else CONTROLLERS),
                "--variants": variants,
                "--only": only,
                "--seeds": seeds,
                "--baseline": baseline,
                "--jobs": jobs,
            },
            overrides or (),
            {"--table": table},
        ),
        progress=progress,
    )
    show(ablation)
    raise typer.Exit(1 if ablation.failures else 0)
