"""Which methods of a stage make other bytes than they once did, so that old ones are not found for new.

A stage's own version (``runs.artifacts``) would have every training repeated where one method has changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from toolchain.distillation.config import Distil


def changed_methods(stage: BaseModel) -> str:
    """The losses and controllers of ``stage`` past their first version, e.g. ``ofa 2``; else empty."""
    found: set[str] = set()
    for distil in _distils(stage):
        from toolchain.distillation.controllers.controller import CONTROLLERS
        from toolchain.distillation.losses.entry import LOSSES

        controller = CONTROLLERS.look_up(distil.controller)
        versions = {controller.name: controller.version}
        versions |= {loss.loss: LOSSES.look_up(loss.loss).version for loss in distil.losses}
        found |= {f"{name} {version}" for name, version in versions.items() if version > 1}
    return ", ".join(sorted(found))


def _distils(value: Any) -> Iterator[Distil]:
    if isinstance(value, Distil):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _distils(getattr(value, name))
