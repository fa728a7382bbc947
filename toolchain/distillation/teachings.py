"""Where a recipe distils: every stage and field with a ``distil`` section, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from deploy.errors import ConfigError
from toolchain.distillation.config import Distil

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe, StageConfig


@dataclass(frozen=True)
class Teaching:
    """A place where a recipe distils: ``stages[position].field`` is ``distil``."""

    position: int
    field: str
    distil: Distil

    @property
    def key(self) -> str:
        """As ``--set`` spells it."""
        return f"stages.{self.position}.{self.field}"


def teachings(recipe: Recipe) -> list[Teaching]:
    """Where the recipe distils, in the order of its stages."""
    return teachings_in(recipe.stages)


def teachings_in(stages: Sequence[BaseModel]) -> list[Teaching]:
    """Where a chain distils, in the order of its stages."""
    return [
        Teaching(position, field, value)
        for position, stage in enumerate(stages)
        for field in type(stage).model_fields
        if isinstance(value := getattr(stage, field), Distil)
    ]


def require_teachings(recipe: Recipe) -> list[Teaching]:
    """Where the recipe distils.

    Raises:
        ConfigError: Nowhere.
    """
    found = teachings(recipe)
    if not found:
        names = ", ".join(stage.stage for stage in recipe.stages)
        raise ConfigError(
            f"{recipe.name}: no stage distils ({names}); accepted is a recipe with a stage that has "
            "`distil`, e.g. recover; add one"
        )
    return found


def placed(error: ConfigError, position: int, stage: StageConfig) -> ConfigError:
    """What a stage says of its ``distil`` section, with the stage's place in front."""
    found = teachings_in([stage])
    if not found or not str(error).startswith("distil."):
        return error
    return ConfigError(f"{place_of(position, stage, found[0].field)}: {error}")


def place_of(position: int, stage: StageConfig, field: str) -> str:
    """Where a recipe distils, for messages."""
    where = f"stages[{position}] ({stage.stage})"
    return where if field == "distil" else f"{where}.{field}"
