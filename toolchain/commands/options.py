"""Arguments that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.errors import ConfigError


def _in_run(folder: Path) -> Path:
    from deploy.bundle import bundle_folder

    return bundle_folder(folder)


BundlePath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE",
        help="The folder of a run, or the bundle in it.",
        show_default=False,
        callback=_in_run,
    ),
]
BundlePaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="BUNDLE...",
        help="Folders of runs, or bundles in them.",
        show_default=False,
        callback=lambda folders: [_in_run(folder) for folder in folders],
    ),
]
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


def words(given: str | None) -> list[str]:
    """``"a,b"`` as a list.

    >>> words("a, b"), words(None)
    (['a', 'b'], [])
    """
    return [word for word in (part.strip() for part in (given or "").split(",")) if word]


def numbers(name: str, given: str | None) -> list[int]:
    """``"1,8"`` as whole numbers.

    Raises:
        ConfigError: One is not.
    """
    try:
        return [int(word) for word in words(given)]
    except ValueError:
        raise ConfigError(f"{name}: {given!r}; give whole numbers, separated by commas") from None
