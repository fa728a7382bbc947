"""How a loss that joins two shapes itself sees them: as maps of one resolution, or as vectors.

Axes: B batch, C channels, H height, W width, N tokens, D dimensions of an embedding.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError


def channels(shape: tuple[int, ...]) -> int:
    """How many a feature of this shape has: the last axis of tokens [B, N, C], else the second."""
    return shape[2] if len(shape) == 3 else shape[1]


def positions(shape: tuple[int, ...]) -> int:
    """How many a feature of this shape has: tokens, height times width, or 1 of a vector."""
    return shape[1] if len(shape) == 3 else math.prod(shape[2:])


def as_map(features: Tensor) -> Tensor:
    """[B, C, H, W] as it is, [B, C] as one position, tokens [B, N, C] on their square grid.

    A class token in front of a square number of tokens has no position and is left out.
    """
    if features.dim() != 3:
        return features if features.dim() == 4 else features[..., None, None]
    side = _side(features.shape[1])
    return features[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))


def as_vector(features: Tensor) -> Tensor:
    """[B, C]: the mean over positions or tokens."""
    if features.dim() == 2:
        return features
    return features.mean(1) if features.dim() == 3 else features.mean((2, 3))


def same_resolution(student_BCHW: Tensor, teacher_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both at the smaller height and width of the two, averaged where they were larger."""
    (h, w), (i, j) = student_BCHW.shape[2:], teacher_BCHW.shape[2:]
    if (h, w) == (i, j):
        return student_BCHW, teacher_BCHW
    smaller = (min(h, i), min(w, j))
    return F.adaptive_avg_pool2d(student_BCHW, smaller), F.adaptive_avg_pool2d(
        teacher_BCHW, smaller
    )


def require_maps(loss: str, *shapes: tuple[int, ...]) -> None:
    """Refuse features that are no maps, vectors or tokens of a square grid.

    Raises:
        ConfigError: Names the shape.
    """
    for shape in shapes:
        if len(shape) not in (2, 3, 4) or (len(shape) == 3 and not _square(shape[1])):
            raise ConfigError(
                f"distil.losses ({loss}).spot: features {tuple(shape[1:])} given; accepted are [C, H, W], "
                "[C], and tokens [N, C] on a square grid with or without a class token; "
                "choose another spot"
            )


class Embedding(nn.Module):
    """A linear map of a feature's mean over positions: [B, ...] -> [B, D].

    Raises:
        ConfigError: The feature is neither a vector, nor tokens, nor a map.
    """

    def __init__(self, shape: tuple[int, ...], dimensions: int) -> None:
        super().__init__()
        if len(shape) not in (2, 3, 4):
            raise ConfigError(
                f"distil.spot: features {tuple(shape[1:])} given; accepted are [C], [N, C] and [C, H, W], "
                "because this loss compares vectors; choose another spot"
            )
        self.linear = nn.Linear(channels(shape), dimensions)

    def forward(self, features: Tensor) -> Tensor:
        """The embedding, not normalized."""
        return self.linear(as_vector(features))


def _side(tokens: int) -> int:
    """Of the grid; one token more than a square is a class token."""
    return math.isqrt(tokens)


def _square(tokens: int) -> bool:
    return tokens - math.isqrt(tokens) ** 2 in (0, 1)
