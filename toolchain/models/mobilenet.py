"""MobileNetV2 for small images: inverted residuals with linear bottlenecks.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
https://arxiv.org/abs/1801.04381, table 2; the stem and the first of its stride-2 stages keep the
resolution, as small images need.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.models.arguments import whole, whole_list
from toolchain.models.initialization import he_normal, small_linear
from toolchain.models.registry import register

# (expansion, channels, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM = 32
_HEAD = 1280


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1 without an activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += _conv(in_channels, hidden, 1)
        layers += _conv(hidden, hidden, 3, stride=stride, groups=hidden)
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.residual:
            return x + self.branch(x)
        return self.branch(x)


class MobileNetV2(nn.Module):
    """A stem, stages of inverted residuals, a wide 1 x 1 head and one linear layer."""

    def __init__(
        self,
        stages: Sequence[tuple[int, ...]],
        stem: int,
        head: int,
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(in_channels, stem, 3))
        blocks: list[nn.Module] = []
        width = stem
        for expansion, channels, count, stride in stages:
            for index in range(count):
                first = stride if index == 0 else 1
                blocks.append(InvertedResidual(width, channels, first, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv(width, head, 1))
        self.classifier = nn.Linear(head, classes)
        he_normal(self)
        small_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def _conv(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU6()]


def _scaled(channels: int, multiplier: float) -> int:
    """Nearest multiple of 8, at least 8, and never less than nine tenths of what was asked.

    >>> _scaled(32, 1.0), _scaled(24, 0.5), _scaled(16, 0.25)
    (32, 16, 8)
    """
    if multiplier == 1.0:
        return channels
    asked = channels * multiplier
    width = max(8, int(asked + 4) // 8 * 8)
    return width + 8 if width < 0.9 * asked else width


@register("mobilenet_v2")
def mobilenet_v2(
    multiplier: float = 1.0,
    stages: Sequence[Sequence[int]] = STAGES,
    classes: int = 10,
    in_channels: int = 3,
) -> nn.Module:
    """MobileNetV2; each of ``stages`` is [expansion, channels, blocks, first stride].

    Raises:
        ConfigError: An argument is not accepted.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or multiplier <= 0:
        raise ConfigError(
            f"model.args.multiplier: {multiplier!r} given; accepted: a number above 0"
        )
    if not isinstance(stages, list | tuple) or not stages:
        raise ConfigError(
            f"model.args.stages: {stages!r} given; accepted: a list of "
            "[expansion, channels, blocks, stride]"
        )
    checked = [whole_list("stages", stage, length=4) for stage in stages]
    return MobileNetV2(
        [(t, _scaled(c, multiplier), n, s) for t, c, n, s in checked],
        _scaled(_STEM, multiplier),
        max(_HEAD, _scaled(_HEAD, multiplier)),  # the paper widens the head but never narrows it
        whole("classes", classes),
        whole("in_channels", in_channels),
    )
