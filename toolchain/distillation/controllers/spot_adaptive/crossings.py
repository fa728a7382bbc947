"""SAKD's adaptation layers: what carries features across from one network's stream to the other's.

    maps               1x1 convolution, BatchNorm, ReLU; 3x3 of stride 2 where the other side has half the
                       resolution, 4x4 transposed of stride 2 where it has twice
    vectors, tokens    a linear layer

Song, Chen, Ye, Song 2022, arXiv 2205.02399 (released code); tokens, other resolutions, and tokens beside maps
are this toolchain's, by `toolchain.distillation.adapters`. These layers ship no more than adapters do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from toolchain.distillation.adapters import MapNorm, join


class Crossing(nn.Module):
    """Both ways across at one spot.

    Args:
        student: Shape of the student's features; the first axis is the batch and does not count.
        teacher: Shape of the teacher's.
        spot: For the message.

    Raises:
        ConfigError: No layer joins the two.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, spot: str) -> None:
        super().__init__()
        self.to_teacher = _one_way(student, teacher, spot)
        self.to_student = _one_way(teacher, student, spot)


def crossings(shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> nn.ModuleList:
    """One at each inner spot, from the student's and the teacher's shape there."""
    return nn.ModuleList(Crossing(*pair, spot) for spot, pair in shapes.items())


def _one_way(given: torch.Size, wanted: torch.Size, spot: str) -> nn.Module:
    joined = join(given, wanted, "shape", spot)
    if len(wanted) != 4:
        return nn.Linear(given[-1], wanted[-1]) if joined is None else joined
    if joined is None:
        joined = nn.Conv2d(given[1], wanted[1], 1, bias=False)
    return nn.Sequential(joined, MapNorm(wanted[1]), nn.ReLU(inplace=True))
