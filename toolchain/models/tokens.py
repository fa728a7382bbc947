"""What networks on tokens share: an image cut into patches, and the two layers that mix channels.

Axes: B batch, C channels, H height, W width, N tokens (row by row over the grid of patches).
"""

from __future__ import annotations

from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.models.arguments import whole


class Patches(nn.Module):
    """``x_BCHW`` to tokens [B, N, width]: a linear layer on each patch, as a strided convolution."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(x_BCHW).flatten(2).transpose(1, 2)


class TwoLayers(nn.Module):
    """Linear, GELU, linear over the last axis: ``width`` to ``hidden`` and back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def patch_count(image_size: int, patch: int) -> int:
    """How many patches a square image has.

    Raises:
        ConfigError: The patches do not tile the image.
    """
    if whole("image_size", image_size) % whole("patch", patch):
        raise ConfigError(
            f"model.args.patch: {patch} given for images of {image_size} x {image_size}; accepted: "
            "a divisor of image_size"
        )
    return int((image_size // patch) ** 2)
