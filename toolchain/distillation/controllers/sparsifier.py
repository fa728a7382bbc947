"""Where a controller's sparsity strengths go: whoever prunes the student while it is taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerState:
    """What is known of a layer's channels.

    Attributes:
        mean: Of |V_g| / sqrt|g| over the channels.
        low: Their lowest decile.
        sparsity: Share of the channels whose Z_g is zero.
    """

    mean: float
    low: float
    sparsity: float


class Sparsifier(Protocol):
    """Prunes a student by strengths that somebody else sets."""

    @property
    def layers(self) -> Sequence[str]:
        """Names of the layers that have a strength; none once the masks are fixed."""
        ...

    @property
    def strengths(self) -> Mapping[str, float]:
        """beta of each layer."""
        ...

    def parameters(self, layer: str) -> Sequence[nn.Parameter]:
        """The weights that make a layer's channels."""
        ...

    def observe(self) -> Mapping[str, LayerState]:
        """Each layer as it is now."""
        ...

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """beta of each layer, from the next Z-step on."""
        ...

    def pull(self) -> Mapping[nn.Parameter, Tensor]:
        """The gradient of the penalty that draws the weights to their sparse copy."""
        ...

    def sparse(self) -> AbstractContextManager[None]:
        """Inside the block the student has the weights that a Z-step would give now."""
        ...

    def hypergradients(self, gradients: Mapping[nn.Parameter, Tensor]) -> Mapping[str, float]:
        """Derivative of the held-out loss by each layer's strength, at an unchanged size.

        Where channels stay whole or go, as by a projection, that would be zero: a surrogate in its place.

        Args:
            gradients: Of the held-out loss, taken inside ``sparse``.
        """
        ...
