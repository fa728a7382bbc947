"""``compress-deploy compare``: is one record faster than another, and how sure is that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORD", help="Records that `bench` wrote; each against the first."
        ),
    ],
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-different",
            metavar="MODE",
            help="A mode that may differ, such as threads or versions; may be repeated, or `all`.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Compare records, with intervals of 95 %.

    Refuses records that were not measured alike (provider, threads, batch, copies, CUDA graph,
    power mode, versions and so on) and names each difference; partial and invalid records are never
    compared.
    """
    from toolchain.measuring.benching import compare_files

    raise typer.Exit(compare_files(records, allow_different or [], as_json=as_json))
