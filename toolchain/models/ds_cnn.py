"""DS-CNN for keyword spotting: depthwise-separable convolutions over a one-channel spectrogram.

Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers",
https://arxiv.org/abs/1711.07128, section 4.6 and appendix A; the blocks are MobileNet's, Howard et
al. 2017, https://arxiv.org/abs/1704.04861.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.models.arguments import whole
from toolchain.models.initialization import he_normal, small_linear
from toolchain.models.registry import register

# size: (channels, strides of the first convolution, stride of the first separable block)
_SIZES = {
    "s": (64, (2, 2), 1),
    "m": (172, (2, 1), 2),
    "l": (276, (2, 1), 2),
}
_BLOCKS = {"s": 4, "m": 4, "l": 5}


class SeparableBlock(nn.Module):
    """A 3 x 3 filter per channel, then a 1 x 1 mix of channels; each with norm and ReLU."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(out)))


class DsCnn(nn.Module):
    """A 10 x 4 convolution (time x frequency), separable blocks, average pool, one linear layer."""

    def __init__(
        self,
        channels: int,
        blocks: int,
        strides: tuple[int, int],
        block_stride: int,
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        # Padding 5 and 1 gives the 25 x 5 map that the paper's 49 x 10 input has with "same".
        self.conv = nn.Conv2d(in_channels, channels, (10, 4), strides, (5, 1), bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential(
            *(SeparableBlock(channels, block_stride if i == 0 else 1) for i in range(blocks))
        )
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)
        small_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


@register("ds_cnn")
def ds_cnn(
    size: str = "s",
    channels: int | None = None,
    blocks: int | None = None,
    classes: int = 12,
    in_channels: int = 1,
) -> nn.Module:
    """DS-CNN of size s, m or l; input is [B, 1, time, frequency], 49 x 10 in the paper.

    ``channels`` and ``blocks`` replace those of the size.

    Raises:
        ConfigError: An argument is not accepted.
    """
    if size not in _SIZES:
        raise ConfigError(f"model.args.size: {size!r} given; accepted: {', '.join(_SIZES)}")
    width, strides, block_stride = _SIZES[size]
    return DsCnn(
        width if channels is None else whole("channels", channels),
        _BLOCKS[size] if blocks is None else whole("blocks", blocks),
        strides,
        block_stride,
        whole("classes", classes),
        whole("in_channels", in_channels),
    )
