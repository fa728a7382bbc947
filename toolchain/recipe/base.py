"""The base of everything that is read from a recipe: frozen, and deaf to keys it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value object: equal when its fields are equal, never changed after it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
