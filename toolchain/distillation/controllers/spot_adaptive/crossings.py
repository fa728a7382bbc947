"""SAKD's adaptation layers: what carries features across from one network's stream to the other's.

    maps     1x1 convolution, BatchNorm, ReLU; 3x3 of stride 2 where the other side has half the resolution,
             4x4 transposed of stride 2 where it has twice
    vectors  a linear layer

Song, Chen, Ye, Song 2022, arXiv 2205.02399 (released code). Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from deploy.errors import ConfigError


class Crossing(nn.Module):
    """Both ways across at one spot.

    Args:
        student: Shape [B, C, ...] of the student's features.
        teacher: Shape of the teacher's.
        spot: For the message.

    Raises:
        ConfigError: No layer joins the two.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, spot: str) -> None:
        super().__init__()
        self.to_teacher = _one_way(student, teacher, spot)
        self.to_student = _one_way(teacher, student, spot)


def _one_way(given: torch.Size, wanted: torch.Size, spot: str) -> nn.Module:
    if len(given) == len(wanted) == 2:
        return nn.Linear(given[1], wanted[1])
    if len(given) == len(wanted) == 4:
        convolution = _convolution(given, wanted)
        if convolution is not None:
            return nn.Sequential(convolution, nn.BatchNorm2d(wanted[1]), nn.ReLU(inplace=True))
    raise ConfigError(
        f"spot-adaptive: {spot!r} gives {tuple(given[1:])} in one network and {tuple(wanted[1:])} in the "
        "other; resolutions may be equal or differ by a factor of 2; choose another pair of spots"
    )


def _convolution(given: torch.Size, wanted: torch.Size) -> nn.Module | None:
    if given[2:] == wanted[2:]:
        return nn.Conv2d(given[1], wanted[1], 1, bias=False)
    if all((size + 1) // 2 == other for size, other in zip(given[2:], wanted[2:], strict=True)):
        return nn.Conv2d(given[1], wanted[1], 3, stride=2, padding=1, bias=False)
    if all(2 * size == other for size, other in zip(given[2:], wanted[2:], strict=True)):
        return nn.ConvTranspose2d(given[1], wanted[1], 4, stride=2, padding=1, bias=False)
    return None


def crossings(shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> nn.ModuleList:
    """One at each inner spot, from the student's and the teacher's shape there."""
    return nn.ModuleList(Crossing(*pair, spot) for spot, pair in shapes.items())
