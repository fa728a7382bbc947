r"""Exit branches: from a stage of a student into the classes, where any teacher can be followed.

    exit_i(f) = head(pool(blocks_i(f)))         OFA-KD, Hao, Guo, Han, Tang, Hu, Wang, Xu 2023,
                                                "One-for-All: Bridge the Gap Between Heterogeneous
                                                Architectures in Knowledge Distillation", NeurIPS,
                                                https://arxiv.org/abs/2310.19444
    maps     n separable blocks of stride 2, channels doubling up to the width; n = 0: a 1x1 convolution;
             mean over positions, linear
    tokens   2x2 neighbours merged while the grid is larger than 7x7, then max(n, 1) transformer blocks of
             the width; class token or mean over tokens, linear
    start    convolutions He's normal by fan-out, linear layers a truncated normal of 0.02

with n = min(stages - stage, 3): three at most, as the four stages of the paper's students have.

**Reconstruction** for small images, on which the paper's students do not run (it enlarges them to 224
pixels): a map that is no larger than 4x4 is not halved any more, and its blocks have stride 1; a grid of
at most 7x7 is not merged, so 8x8 (32 pixels in patches of 4) becomes 4x4 as the paper's 14x14 becomes
7x7; a grid of odd side is padded by zeros; a class token goes through a linear layer of its own where the
grid is merged. Branches are trained with the student and never ship. Axes: B batch, C channels, H height,
W width, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.adapters import MapNorm, Mean, grid_side, has_class_token

MOST_BLOCKS = 3
SMALLEST_MAP, LARGEST_GRID = 4, 7
HEADS = 4


def exit_branch(
    student_shape: torch.Size, classes: int, *, stage: int, stages: int, width: int
) -> nn.Module:
    """The branch of stage ``stage`` of ``stages``, the first being 1.

    Args:
        student_shape: Of the student's features there: [B, C], [B, N, C] or [B, C, H, W].
        classes: The teacher's logits.
        stage: Later stages get shorter branches.
        stages: With a branch.
        width: Channels before the linear layer: the larger of the last ones of student and teacher in
            the paper, for tokens the student's.

    Raises:
        ConfigError: The shape is none of the three.
    """
    own, blocks = tuple(student_shape[1:]), min(stages - stage, MOST_BLOCKS)
    branch: nn.Module | None = None
    if len(own) == 1:
        branch = nn.Linear(own[0], classes)
    elif len(own) == 2 and grid_side(own[0]):
        branch = TokenExit(own[0], own[1], width, classes, max(blocks, 1))
    elif len(own) == 3:
        branch = map_exit(own, width, classes, blocks)
    if branch is None:
        raise ConfigError(
            f"distil.spot: an exit branch cannot start from {own}; accepted are [C], [C, H, W], and tokens "
            "[N, C] on a square grid with or without a class token; choose another spot"
        )
    _initialize(branch)
    return branch


def map_exit(own: tuple[int, ...], width: int, classes: int, blocks: int) -> nn.Sequential:
    """From maps [B, C, H, W], ``own`` being (C, H, W), to logits."""
    channels, side = own[0], min(own[1:])
    layers: list[nn.Module] = []
    for block in range(blocks):
        out = width if block == blocks - 1 else min(2 * channels, max(width, channels))
        stride = 2 if side > SMALLEST_MAP else 1
        layers += [_separable(channels, channels, stride), _separable(channels, out, 1)]
        channels, side = out, -(-side // stride)
    if not blocks:
        layers.append(nn.Conv2d(channels, width, 1, bias=False))
    return nn.Sequential(*layers, Mean(), nn.Linear(width, classes))


def _separable(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.Conv2d(channels, out_channels, 1, bias=False),
        MapNorm(out_channels),
        nn.ReLU(),
    )


class PatchMerging(nn.Module):
    """Tokens of 2x2 neighbours as one token; a class token in front gets a linear layer of its own."""

    def __init__(self, tokens: int, channels: int, out_channels: int) -> None:
        super().__init__()
        side = grid_side(tokens)
        assert side is not None
        self.side = side
        self.norm = nn.LayerNorm(4 * channels)
        self.linear = nn.Linear(4 * channels, out_channels)
        self.of_class = nn.Linear(channels, out_channels) if has_class_token(tokens) else None

    def forward(self, x_BNC: Tensor) -> Tensor:
        """To [B, ceil(side / 2)^2, out], and the class token in front if there was one."""
        grid_BHWC = x_BNC[:, -(self.side**2) :].unflatten(1, (self.side, self.side))
        if self.side % 2:
            grid_BHWC = F.pad(grid_BHWC, (0, 0, 0, 1, 0, 1))
        corners = [grid_BHWC[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        merged_BNC = F.gelu(self.linear(self.norm(torch.cat(corners, -1).flatten(1, 2))))
        if self.of_class is None:
            return merged_BNC
        return torch.cat([self.of_class(x_BNC[:, :1]), merged_BNC], 1)


class TokenExit(nn.Module):
    """From tokens [B, N, C] to logits."""

    def __init__(self, tokens: int, channels: int, width: int, classes: int, blocks: int) -> None:
        super().__init__()
        self.class_token = has_class_token(tokens)
        side = grid_side(tokens)
        assert side is not None
        merging: list[nn.Module] = []
        while side > LARGEST_GRID:
            merging.append(PatchMerging(side**2 + self.class_token, channels, width))
            side, channels = -(-side // 2), width
        if channels != width:
            merging.append(nn.Linear(channels, width))
        self.merging = nn.Sequential(*merging)
        heads = next(heads for heads in (HEADS, 2, 1) if width % heads == 0)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(blocks)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """To [B, classes]."""
        x_BNC = self.norm(self.blocks(self.merging(x_BNC)))
        return self.head(x_BNC[:, 0] if self.class_token else x_BNC.mean(1))


def _initialize(branch: nn.Module) -> None:
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
