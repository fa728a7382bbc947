"""``compress-deploy verify``: is the bundle the student that was trained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import Overrides


def verify(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="A folder that `run` wrote.", show_default=False),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A recipe, whose test part is taken, or an .npz file with inputs [N, C, H, W] (raw "
            "uint8 or pre-processed float32) and labels [N]. Without: the bundle's own samples.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A target of the bundle; all by default.", show_default=False),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="A batch size to try. By default 1 and 64, and every engine at the ends of its "
            "profiles.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads; those torch takes by default.", show_default=False),
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
        target or (),
        samples,
        Progress(),
        batches=batch or (),
        threads=threads or torch.get_num_threads(),
    )
    if as_json:
        print(showing.as_json(opened.name, proofs))
    else:
        showing.show(opened.name, proofs, Console())
    raise typer.Exit(0 if all(proofs) else 1)
