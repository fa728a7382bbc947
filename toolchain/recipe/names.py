"""The names that a recipe can use, each with a line about it, for ``compress-deploy list``."""

from __future__ import annotations

import inspect
from typing import get_args

from toolchain.recipe.schema import DataConfig, StructureConfig
from toolchain.stages import STAGES

_IMPORTANCES = {
    "l1": "sum of the magnitudes of a channel's weights",
    "l2": "root of the sum of their squares",
    "taylor": "first-order estimate of how the loss changes without the channel",
    "bn_scale": "magnitude of the batch-norm factor behind the channel",
}


def named(what: str) -> list[tuple[str, str]]:
    """Names and descriptions of ``models``, ``stages``, ``data`` or ``importances``."""
    if what == "models":
        from toolchain.models.registry import names

        return [(name, "") for name in names()]
    if what == "importances":
        accepted = get_args(StructureConfig.model_fields["importance"].annotation)
        return [(name, _IMPORTANCES[name]) for name in accepted]
    field, kinds = ("stage", STAGES) if what == "stages" else ("kind", get_args(DataConfig))
    return [(get_args(kind.model_fields[field].annotation)[0], _first_line(kind)) for kind in kinds]


def _first_line(described: type) -> str:
    return (inspect.getdoc(described) or "").partition("\n")[0]
