"""What brings a student's features to a teacher's shape; trained with the student, and never shipped.

Features are vectors [B, C], tokens [B, N, C] on a square grid with or without a class token in front
(N = k² or k² + 1), or maps [B, C, H, W]. From one to another:

    channels       a 1x1 convolution or a linear layer, without a bias: losses see directions and spreads
    smaller maps   a strided convolution        larger maps   a transposed one
    tokens, maps   the grid is the map; a student's class token is left out, and where the teacher has one
                   the mean over positions stands in for it
    to a vector    the mean over positions, then a linear layer
    from a vector  the same value at every position: MSE then compares it with the teacher's mean

A convolution whose stride cannot give the size is followed by averaging or interpolation, so that the size
is always exact. Where only positions must agree nothing is learned: averaging or bilinear
interpolation. Axes: B batch, C channels, H height, W width, N tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.locating import LOGITS

Size = tuple[int, int]

# Kernels grow with the square of a stride; what is left to do is averaging or interpolation.
STRIDE = 4


class MapNorm(nn.BatchNorm2d):
    """A batch norm that normalizes by its running statistics where a channel has a single value.

    One image, and a map of one position: such a batch has no variance, and torch refuses it.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """To [B, C, H, W]."""
        if self.training and x_BCHW.numel() == x_BCHW.shape[1]:
            return F.batch_norm(
                x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x_BCHW)


def join(student: torch.Size, teacher: torch.Size, match: str, spot: str) -> nn.Module | None:
    """What a student's features go through before a loss; None where they fit as they are.

    Args:
        student: Shape of the student's features; the first axis is the batch and does not count.
        teacher: Shape of the teacher's.
        match: What the loss wants to agree: ``shape``, ``positions`` (all but channels); anything else
            joins nothing but refuses logits of different classes.
        spot: Of the student, for the message.

    Raises:
        ConfigError: Nothing joins the two, or logits of different numbers of classes.
    """
    own, theirs = tuple(student[1:]), tuple(teacher[1:])
    if match in ("batch", "pair", "own"):
        return None
    if match == "positions" and 1 in (len(own), len(theirs)):
        raise ConfigError(
            f"distil.spot: {spot!r} gives {own} in the student and {theirs} in the teacher; this loss "
            "compares positions, which a vector has none of; choose the output of a convolution or block"
        )
    if spot == LOGITS and len(own) == len(theirs) == 1:
        if own == theirs:
            return None
        raise ConfigError(
            f"distil.spot: {spot!r} gives {own[0]} classes in the student and {theirs[0]} in the teacher; "
            "accepted are the same classes in the same order; train one of them on the other's classes"
        )
    if own == theirs:
        return None
    steps = _positions(own, theirs) if match == "positions" else _steps(own, theirs)
    if steps is None:
        raise ConfigError(
            f"distil.spot: {spot!r} gives {own} in the student and {theirs} in the teacher, which nothing "
            "joins; accepted are [C], [C, H, W], and tokens [N, C] as many or on square grids; choose "
            "another spot"
        )
    return None if not steps else steps[0] if len(steps) == 1 else nn.Sequential(*steps)


class Resize(nn.Module):
    """Maps at ``size``: the mean of adjacent positions where there are too many, bilinear where too few."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """To [B, C, *size]."""
        (height, width), (h, w) = x_BCHW.shape[2:], self.size
        smaller = (min(height, h), min(width, w))
        if smaller != (height, width):
            x_BCHW = F.adaptive_avg_pool2d(x_BCHW, smaller)
        if smaller != self.size:
            x_BCHW = F.interpolate(x_BCHW, self.size, mode="bilinear", align_corners=False)
        return x_BCHW

    def extra_repr(self) -> str:
        return f"size={self.size}"


class TokensToMap(nn.Module):
    """Tokens on their grid of ``side`` x ``side``; a class token in front is left out."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_BNC: Tensor) -> Tensor:
        """To [B, C, side, side]."""
        grid_BNC = x_BNC[:, -(self.side**2) :]
        return grid_BNC.transpose(1, 2).unflatten(2, (self.side, self.side))

    def extra_repr(self) -> str:
        return f"side={self.side}"


class MapToTokens(nn.Module):
    """A map as tokens, row by row; ``class_token`` puts the mean over positions in front."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """To [B, H W, C], or one more token."""
        tokens_BNC = x_BCHW.flatten(2).transpose(1, 2)
        if not self.class_token:
            return tokens_BNC
        return torch.cat([tokens_BNC.mean(1, keepdim=True), tokens_BNC], 1)

    def extra_repr(self) -> str:
        return f"class_token={self.class_token}"


class Mean(nn.Module):
    """The mean over positions: maps [B, C, H, W] to vectors [B, C]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """To [B, C]."""
        return x_BCHW.mean((2, 3))


class Spread(nn.Module):
    """The same vector at every position of a map of ``size``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_BC: Tensor) -> Tensor:
        """To [B, C, *size]."""
        return x_BC[..., None, None].expand(-1, -1, *self.size)

    def extra_repr(self) -> str:
        return f"size={self.size}"


def grid_side(tokens: int) -> int | None:
    """Side of the square grid of so many tokens, a class token aside; None if they are on none.

    >>> grid_side(64), grid_side(65), grid_side(66)
    (8, 8, None)
    """
    side = math.isqrt(tokens)
    return side if side and tokens - side**2 in (0, 1) else None


def has_class_token(tokens: int) -> bool:
    """Whether there is one more token than a square grid has."""
    side = grid_side(tokens)
    return side is not None and tokens > side**2


def resample(channels: int, out_channels: int, size: Size, out_size: Size) -> list[nn.Module]:
    """Layers from maps of one size and width to exactly another; none where both fit."""
    steps: list[nn.Module] = []
    larger = tuple(n > m for n, m in zip(size, out_size, strict=True))
    down = tuple(_shrink(n, m) for n, m in zip(size, out_size, strict=True))
    up = tuple(min(-(-m // n), STRIDE) for n, m in zip(size, out_size, strict=True))
    now = tuple(-(-n // s) * u for n, s, u in zip(size, down, up, strict=True))
    if any(larger) or (channels != out_channels and max(up) == 1):
        steps.append(_strided(channels, out_channels, down, larger))
        channels = out_channels
    if max(up) > 1:
        steps.append(_transposed(channels, out_channels, up))
    return steps if now == out_size else [*steps, Resize(out_size)]


def _shrink(n: int, m: int) -> int:
    """The largest stride that leaves m of n positions or more, ceil(n / stride) being left."""
    if n <= m:
        return 1
    return min(n if m == 1 else -(-n // (m - 1)) - 1, STRIDE)


def _strided(
    channels: int, out_channels: int, stride: tuple[int, ...], wide: tuple[bool, ...]
) -> nn.Conv2d:
    """To ceil(n / stride) positions on each axis; the kernel is 1 where the axis keeps its size."""
    # Odd and padded by half of itself, a kernel leaves that many positions whatever n is.
    kernel = tuple(max(3, s + 1 - s % 2) if w else 1 for s, w in zip(stride, wide, strict=True))
    padding = tuple(k // 2 for k in kernel)
    return nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)  # type: ignore[arg-type]


def _transposed(channels: int, out_channels: int, stride: tuple[int, ...]) -> nn.ConvTranspose2d:
    """To n * stride positions on each axis: 4x4 for a stride of 2, and 1 for a stride of 1."""
    padding = tuple(s // 2 for s in stride)
    kernel = tuple(s + 2 * p for s, p in zip(stride, padding, strict=True))
    return nn.ConvTranspose2d(channels, out_channels, kernel, stride, padding, bias=False)  # type: ignore[arg-type]


def _steps(own: tuple[int, ...], theirs: tuple[int, ...]) -> list[nn.Module] | None:
    """Layers between two shapes without the batch axis; None where there are none."""
    if len(own) == len(theirs) == 2 and own[0] == theirs[0]:
        return [nn.Linear(own[1], theirs[1], bias=False)]  # tokens of any grid
    if len(theirs) == 1:
        opened = _open(own)
        if opened is None:
            return None
        steps, channels, _ = opened
        steps = [*steps, Mean()] if len(own) > 1 else []
        return steps if channels == theirs[0] else [*steps, _linear(channels, theirs[0])]
    opened, wanted = _open(own), _open(theirs)
    if opened is None or wanted is None:
        return None
    (steps, channels, size), (_, out_channels, out_size) = opened, wanted
    if len(own) == 1:
        learned = [] if channels == out_channels else [_linear(channels, out_channels)]
        steps = [*learned, Spread(out_size)]
    else:
        steps = [*steps, *resample(channels, out_channels, size, out_size)]
    return [*steps, *_close(theirs)]


def _positions(own: tuple[int, ...], theirs: tuple[int, ...]) -> list[nn.Module] | None:
    """Layers without parameters from a map or tokens to the positions of another."""
    if len(own) == len(theirs) and (
        own[0] == theirs[0] if len(own) == 2 else own[1:] == theirs[1:]
    ):
        return []
    opened, wanted = _open(own), _open(theirs)
    if opened is None or wanted is None:
        return None
    resized = [] if opened[2] == wanted[2] else [Resize(wanted[2])]
    return [*opened[0], *resized, *_close(theirs)]


def _open(shape: tuple[int, ...]) -> tuple[list[nn.Module], int, Size] | None:
    """What makes a map of such features, its channels and its size; None for other shapes."""
    if len(shape) == 3:
        return [], shape[0], (shape[1], shape[2])
    if len(shape) == 1:
        return [], shape[0], (1, 1)
    side = grid_side(shape[0]) if len(shape) == 2 else None
    return None if side is None else ([TokensToMap(side)], shape[1], (side, side))


def _close(shape: tuple[int, ...]) -> list[nn.Module]:
    """What makes such features of a map."""
    return [MapToTokens(has_class_token(shape[0]))] if len(shape) == 2 else []


def _linear(channels: int, out_channels: int) -> nn.Linear:
    return nn.Linear(channels, out_channels, bias=False)
