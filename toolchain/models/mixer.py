"""A small MLP-Mixer for 32 x 32 images: layers over the tokens and over the channels in turn.

    x <- x + MLP_tokens(LN(x)^T)^T       the same for every channel
    x <- x + MLP_channels(LN(x))         the same for every token

Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS,
https://arxiv.org/abs/2105.01601, section 2, equation 1.  At the defaults it has 44 million MACs, like a
ResNet-20 (41).  Axes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from toolchain.models.arguments import whole
from toolchain.models.initialization import truncated_normal
from toolchain.models.registry import register
from toolchain.models.tokens import Patches, TwoLayers, patch_count


class MixerBlock(nn.Module):
    """Two layers across tokens, two across channels, each beside a shortcut and behind a norm."""

    def __init__(self, tokens: int, width: int, token_hidden: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token_mlp = TwoLayers(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TwoLayers(width, hidden)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.token_mlp(self.norm1(x_BNC).transpose(1, 2)).transpose(1, 2)
        return x_BNC + self.mlp(self.norm2(x_BNC))


class Mixer(nn.Module):
    """Patches, ``depth`` blocks, and a linear classifier of the mean token."""

    def __init__(
        self,
        tokens: int,
        patch: int,
        width: int,
        depth: int,
        token_hidden: int,
        hidden: int,
        classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.patches = Patches(in_channels, width, patch)
        blocks = [MixerBlock(tokens, width, token_hidden, hidden) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)
        truncated_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.blocks(self.patches(x))).mean(1))


@register("mixer")
def mixer(
    image_size: int = 32,
    patch: int = 4,
    width: int = 96,
    depth: int = 8,
    token_hidden: int = 64,
    mlp_ratio: int = 4,
    classes: int = 10,
    in_channels: int = 3,
) -> nn.Module:
    """An MLP-Mixer for square images; ``token_hidden`` is the hidden width of the layers over tokens.

    Raises:
        ConfigError: An argument is not accepted, or the patches do not tile the image.
    """
    return Mixer(
        patch_count(image_size, patch),
        patch,
        whole("width", width),
        whole("depth", depth),
        whole("token_hidden", token_hidden),
        width * whole("mlp_ratio", mlp_ratio),
        whole("classes", classes),
        whole("in_channels", in_channels),
    )
