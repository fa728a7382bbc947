"""Residual networks for small images: three stages of basic blocks, 6n + 2 layers.

He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385,
section 4.2.  Module names are those of the published CIFAR-10 checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.models.arguments import whole
from toolchain.models.registry import register
from toolchain.models.shortcut import PadShortcut

SHORTCUTS = ("pad", "conv")


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(in_channels, channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """``blocks`` basic blocks in each of three stages of width, 2 and 4 times width."""

    def __init__(
        self, blocks: int, classes: int, in_channels: int, width: int, shortcut: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, 1, shortcut)
        self.layer2 = _stage(blocks, width, 2 * width, 2, shortcut)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2, shortcut)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        return self.linear(out)


def _stage(
    blocks: int, in_channels: int, channels: int, stride: int, shortcut: str
) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    rest = [BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


@register("cifar_resnet")
def cifar_resnet(
    depth: int = 20, classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: str = "pad"
) -> nn.Module:
    """A CIFAR ResNet of ``depth`` weighted layers; ``shortcut`` is pad (no parameters) or conv.

    Raises:
        ConfigError: The depth is not 6n + 2, or another argument is not accepted.
    """
    if whole("depth", depth) < 8 or (depth - 2) % 6:
        raise ConfigError(
            f"model.args.depth: {depth} given; accepted: 6n + 2, e.g. 8, 14, 20, 32, 44, 56, 110"
        )
    if shortcut not in SHORTCUTS:
        raise ConfigError(
            f"model.args.shortcut: {shortcut!r} given; accepted: {', '.join(SHORTCUTS)}"
        )
    return CifarResNet(
        (depth - 2) // 6,
        whole("classes", classes),
        whole("in_channels", in_channels),
        whole("width", width),
        shortcut,
    )
