"""``compress-deploy analyze``: where distillation helps, and where sparsity is cheap."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import Overrides, RecipePath, words


def analyze(
    recipe: RecipePath,
    epochs: Annotated[
        float, typer.Option(min=0, help="Also while the teaching stage trains for so long.")
    ] = 0.0,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="Steps between two measurements. Default: a quarter of the training.",
            show_default=False,
        ),
    ] = None,
    controllers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Train under these too, from the same start, and compare with fixed strength, e.g. "
            "dean,anti. Needs --epochs. See `list controllers`.",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="Which stage. Default: the first that distils.",
            show_default=False,
        ),
    ] = None,
    spots: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Further spots to look at by their attention maps, e.g. 'layer*'; not taught. "
            "See `list spots`.",
            show_default=False,
        ),
    ] = None,
    probes: Annotated[int, typer.Option(min=1, help="Probe batches of 128 images.")] = 8,
    images: Annotated[
        int, typer.Option(min=0, help="Held-out images for sparsability; 0: not that.")
    ] = 1000,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for artifacts and results.")] = Path("runs"),
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines instead of a moving display.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Show, layer by layer, where the teacher helps and what sparsity costs.

    Distillability is the cosine between the gradient of what is distilled and the gradient of the task: at 1
    the teacher pulls a layer's weights where the labels pull them, at 0 across, below 0 against. Sparsability
    is what the loss on held-out images rises by when channels of least importance go from one group of
    channels alone, a quarter, half and three quarters of them, before any recovery.

    Runs the recipe up to its first stage that distils, and measures the network that this stage is given;
    with --epochs also while it trains at fixed strength, and with --controllers under others too. Prints
    tables, and says whether distillability grows with depth, falls with training, and falls later under a
    controller, as far as the probes can tell. Leaves analysis.md with drawings, and all numbers as
    analysis.json, in the output folder.
    """
    from deploy.errors import ConfigError
    from toolchain.recipe.reading import load_recipe

    if controllers is not None and not words(controllers):
        raise ConfigError(
            f"--controllers: {controllers!r} names none; accepted e.g. dean,anti; name one, or leave the "
            "option out"
        )
    if not isfinite(epochs):
        raise ConfigError(f"--epochs: {epochs} given; accepted is a finite number; change it")
    if spots is not None and not spots.strip():
        raise ConfigError(
            "--spots: '' given; accepted is a path or a pattern such as 'layer*', see `list spots`; name "
            "one, or leave the option out"
        )
    loaded = load_recipe(recipe, overrides or [])

    from toolchain.analysis.analyzing import analyze_recipe
    from toolchain.analysis.page import PAGE, show
    from toolchain.runs.markdown import shown_command
    from toolchain.training.progress import Progress

    analysis, folder = analyze_recipe(
        loaded,
        stage=stage,
        epochs=epochs,
        every=every,
        probes=probes,
        images=images,
        spots=spots,
        controllers=words(controllers),
        out=out,
        command=shown_command(
            "analyze",
            [recipe],
            {
                "--stage": stage,
                "--epochs": f"{epochs:g}" if epochs else None,
                "--every": every,
                "--controllers": controllers,
                "--spots": spots,
                "--probes": probes,
                "--images": images,
            },
            overrides or (),
        ),
        progress=Progress(plain=True if plain else None, quiet=quiet),
    )
    show(analysis)
    print(f"analysis  {folder / PAGE}")
