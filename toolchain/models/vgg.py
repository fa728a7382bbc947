"""VGG with batch normalisation and one linear layer, for small images.

Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
https://arxiv.org/abs/1409.1556, table 1; the norm after each convolution is from Ioffe and Szegedy
2015, https://arxiv.org/abs/1502.03167.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.models.arguments import whole
from toolchain.models.initialization import he_normal, small_linear
from toolchain.models.registry import register

POOL = "M"

# Convolutions in each stage, by the number of weighted layers in the paper.
_CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_STAGE_WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """Convolutions of the given widths, halving the image at each ``M``."""

    def __init__(self, widths: Sequence[int | str], classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)
        small_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(pooled, 1))


@register("vgg")
def vgg(
    depth: int = 16,
    widths: Sequence[int | str] | None = None,
    classes: int = 10,
    in_channels: int = 3,
) -> nn.Module:
    """VGG-11, 13, 16 or 19; or any ``widths``: numbers are convolutions, ``M`` halves the image.

    The four published depths halve five times and need images of at least 32 x 32.

    Raises:
        ConfigError: An argument is not accepted.
    """
    if widths is None:
        if depth not in _CONVOLUTIONS:
            raise ConfigError(
                f"model.args.depth: {depth!r} given; accepted: 11, 13, 16, 19; "
                "or give the widths instead, e.g. [32, M, 64, M]"
            )
        widths = []
        for count, width in zip(_CONVOLUTIONS[depth], _STAGE_WIDTHS, strict=True):
            widths += [width] * count + [POOL]
    _check(widths)
    return Vgg(widths, whole("classes", classes), whole("in_channels", in_channels))


def _check(widths: Sequence[int | str]) -> None:
    if isinstance(widths, str) or not any(isinstance(width, int) for width in widths):
        raise ConfigError(
            f"model.args.widths: {widths!r} given; accepted: a list with at least one number, "
            "e.g. [32, M, 64, M]"
        )
    for width in widths:
        if width != POOL:
            whole("widths", width)
