"""``compress-deploy export``: graphs for more targets from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.errors import ConfigError
from deploy.targets import TARGETS, Target

if TYPE_CHECKING:
    from toolchain.shipping.exporting import TargetGraph


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished run, or a bundle.", show_default=False
        ),
    ],
    target: Annotated[
        str, typer.Option(help=f"One or several of {', '.join(TARGETS)}, with commas between.")
    ] = "tensorrt",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files, instead of the bundle.", show_default=False),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Layers that stay in higher precision: path or glob, or first, last. "
            "May be given several times.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Write the student of a finished run as ONNX graphs for other targets.

    Each target has its own grid of activations and its own forms of layers; the weights are the same.
    Every file is run and compared with the student, and shown to NVIDIA's importer where that is
    installed; what is refused is not written. Files go into the bundle, beside those it has.
    """
    targets = parse_targets(target)

    from toolchain.shipping.further_targets import export_again

    graphs = export_again(run, targets, out=out, keep_float=keep_float or ())
    if as_json:
        import json

        print(json.dumps({graph.target: graph.to_dict() for graph in graphs}, indent=2))
        return
    _show(graphs)


def parse_targets(given: str) -> list[Target]:
    """The targets of ``ort-cpu,tensorrt``.

    Raises:
        ConfigError: One is not known or is given twice.
    """
    names = [name.strip() for name in given.split(",")]
    targets = [known for name in names for known in TARGETS if known == name]
    if len(targets) < len(names) or len(set(targets)) < len(targets):
        raise ConfigError(
            f"--target {given}: accepted are {', '.join(TARGETS)}, each once, with commas between"
        )
    return targets


def _show(graphs: list[TargetGraph]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column, justify in (
        ("target", "left"),
        ("bytes", "right"),
        ("decisions as torch's", "right"),
        ("NVIDIA's importer", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for graph in graphs:
        importer = graph.importer or {}
        said = {True: f"accepts it, {importer.get('parser')}", None: "not installed"}
        table.add_row(
            graph.target,
            f"{graph.path.stat().st_size:,}",
            f"{graph.student.agreeing} of {graph.student.rows}",
            said[importer["accepted"]] if importer else "",
        )
    console = Console()
    console.print(table)
    for graph in graphs:
        console.print(str(graph.path), highlight=False, soft_wrap=True)
    for note in (note for graph in graphs for note in graph.notes):
        print(note, file=sys.stderr)
