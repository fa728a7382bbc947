"""``compress-deploy verify``: is the bundle the student that was trained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.commands.options import BundlePaths, Overrides, numbers, words

TABLE = "the table", "give another --table"


def verify(
    bundles: BundlePaths,
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
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.md", help="Write the outcome as a table, too.", show_default=False
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON instead of tables; of several bundles a list."),
    ] = False,
) -> None:
    """Prove that a bundle is the student that was trained.

    The parity ladder sends the same samples through the student in torch, the file with every Q/DQ pair
    in float, the file on integer kernels, and the engine. Each rung is compared with the one above,
    on decisions and on top-1, at batch 1 and at the largest batch. The file is compared with a fresh export
    of the student. Where something fails, layers are blamed. Exit status 1 when anything does.

    Several bundles are proved one after the other, all on the same data.
    """
    from deploy.bundle import Bundle
    from deploy.errors import ConfigError
    from deploy.whole_file import require_writable, write_whole

    sizes = numbers("batch", batch)
    if any(size < 1 for size in sizes):
        raise ConfigError(f"batch: {batch}; give whole numbers of 1 or more, separated by commas")
    if table is not None:  # minutes of proving would be lost
        require_writable(table, *TABLE)
    opened = [Bundle.open(folder) for folder in bundles]

    import torch
    from rich.console import Console

    from toolchain.data.held_out import samples_for
    from toolchain.proof import showing
    from toolchain.proof.proving import Proof, prove
    from toolchain.training.progress import Progress

    # Data that does not fit the last bundle is said before the first is proved.
    samples = [samples_for(bundle, data, overrides or ()) for bundle in opened]
    proved: list[tuple[Bundle, list[Proof]]] = []
    for bundle, rows in zip(opened, samples, strict=True):
        proofs = prove(
            bundle,
            words(target),
            rows,
            Progress(),
            batches=sizes,
            threads=threads or torch.get_num_threads(),
        )
        proved.append((bundle, proofs))
        if not as_json:
            showing.show(bundle.name, proofs, Console())
    if as_json:
        print(showing.as_json([(bundle.name, proofs) for bundle, proofs in proved]))
    if table is not None:
        from toolchain.proof.table import markdown
        from toolchain.runs.markdown import shown_command

        command = shown_command(
            "verify",
            [path.parent if path.name == "bundle" else path for path in bundles],
            {"--data": data},
            overrides or (),
            {"--target": target, "--batch": batch, "--threads": threads, "--table": table},
        )
        write_whole(table, markdown(proved, command), *TABLE)
    raise typer.Exit(0 if all(proof for _, proofs in proved for proof in proofs) else 1)
