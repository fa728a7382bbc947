"""``compress-deploy list``: the names that a recipe can use."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Listable(Enum):
    """What ``list`` can list."""

    models = "models"
    stages = "stages"
    data = "data"
    importances = "importances"


def list_names(
    what: Annotated[Listable, typer.Argument(help="What to list.", show_default=False)],
) -> None:
    """List the names that a recipe can use."""
    from toolchain.recipe.names import named

    rows = named(what.value)
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        print(f"{name:<{width}}  {about}".rstrip())
