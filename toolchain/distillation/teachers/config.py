"""The teachers that a recipe can name, as it says them: ``distil.teachers: {name: {kind: ...}}``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolchain.recipe.base import Frozen
from toolchain.recipe.network import NetworkOrigin

# The recipe's own model, which every chain has a teacher of by this name.
PRETRAINED = "pretrained"


class Pretrained(Frozen):
    """The recipe's model, as the chain's first stage checked it."""

    kind: Literal["pretrained"] = "pretrained"


class AnotherNetwork(NetworkOrigin):
    """Another trained network, built-in or from a file of your own; it stays as it is."""

    kind: Literal["network"] = "network"

    @model_validator(mode="after")
    def _trained(self) -> AnotherNetwork:
        if self.builtin is not None and self.checkpoint is None:
            raise ValueError(
                f"builtin {self.builtin!r} given without a checkpoint, so it has learned nothing; "
                "accepted: a checkpoint, or a file whose function loads the weights"
            )
        return self


class Assistant(Frozen):
    """The student as an earlier stage of this chain left it."""

    kind: Literal["assistant"] = "assistant"
    stage: str = Field(description="name of the earlier stage")
    back: int = Field(
        1, ge=1, description="1: the nearest stage of that name, 2: the one before it"
    )


class MovingAverage(Frozen):
    """The moving average of the student's own weights, since this stage began."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(
        0.999, ge=0, lt=1, description="share of the average kept at each step; less at first"
    )


class InNetwork(Frozen):
    """The student with its masked weights put back, as in PQK; for a student that is being pruned."""

    kind: Literal["in-network"] = "in-network"


KINDS = (Pretrained, AnotherNetwork, Assistant, MovingAverage, InNetwork)

TeacherConfig = Annotated[
    Pretrained | AnotherNetwork | Assistant | MovingAverage | InNetwork,
    Field(discriminator="kind"),
]
