"""``compress-deploy results``: a table over finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def results(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders that `run` wrote, as --out.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.md", help="Where the table goes.")],
) -> None:
    """Write a table of results from finished runs."""
    from toolchain.runs.table import write_table

    write_table(runs, out)
