"""``compress-deploy report``: runs and measurements as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|RECORD",
            help="Run folders that `run` wrote (or a folder of them), and records that `bench` wrote.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="Where the page goes.")] = Path(
        "page.html"
    ),
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Show runs and measurements as one HTML page.

    Teacher against student, goals met and missed, accuracy against latency, energy and size,
    distributions of latency, layers, training, stages, and where it was measured. The page is one
    file: it loads nothing, so it opens offline and can be sent. A record of a run's bundle is shown
    with its run.
    """
    from benchmarks.page.making import write_page

    path = write_page(sources, out)
    print(path)
    if open_:
        _open(path)


def _open(path: Path) -> None:
    import webbrowser

    from deploy.errors import DeviceError

    if not webbrowser.open(path.resolve().as_uri()):
        raise DeviceError(
            f"report --open: {path} is written, but no browser was found here; open it where there is one"
        )
