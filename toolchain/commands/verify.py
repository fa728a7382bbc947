"""``compress-deploy verify``: is the bundle the student that was trained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import BundlePath, Overrides, numbers, words


def verify(
    bundle: BundlePath,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A recipe, whose test part is taken, or an .npz file with x_test and y_test, "
            "or with inputs [N, C, H, W] (raw uint8 or pre-processed float32) and labels [N]. "
            "Without: the bundle's own samples.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Targets of the bundle.", show_default="all that it has"
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,M",
            help="Batch sizes to try.",
            show_default="1 and 64, and every engine at the ends of its profiles",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads.", show_default="as many as torch takes"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Prove that a bundle is the student that was trained.

    The parity ladder sends the same samples through the student in torch, the file with every Q/DQ pair
    in float, the file on integer kernels, and the engine. Each rung is compared with the one above,
    on decisions and on top-1, at batch 1 and at the largest batch. The file is compared with a fresh export
    of the student. Where something fails, layers are blamed. Exit status 1 when anything does.
    """
    from deploy.bundle import Bundle
    from deploy.errors import ConfigError

    sizes = numbers("batch", batch)
    if any(size < 1 for size in sizes):
        raise ConfigError(f"batch: {batch}; give whole numbers of 1 or more, separated by commas")
    opened = Bundle.open(bundle)

    import torch
    from rich.console import Console

    from toolchain.data.held_out import samples_for
    from toolchain.proof import showing
    from toolchain.proof.proving import prove
    from toolchain.training.progress import Progress

    samples = samples_for(opened, data, overrides or ())
    proofs = prove(
        opened,
        words(target),
        samples,
        Progress(),
        batches=sizes,
        threads=threads or torch.get_num_threads(),
    )
    if as_json:
        print(showing.as_json(opened.name, proofs))
    else:
        showing.show(opened.name, proofs, Console())
    raise typer.Exit(0 if all(proofs) else 1)
