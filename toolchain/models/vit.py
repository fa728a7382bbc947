"""A small Vision Transformer for 32 x 32 images.

    x <- x + proj(softmax(q k^T / sqrt(d)) v)  of LN(x), over heads of d channels
    x <- x + MLP(LN(x))                        and LN once more before the classifier

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
ICLR, https://arxiv.org/abs/2010.11929, section 3.1, equations 1 to 4 and appendix A.  At the defaults
it has 43 million MACs in its linear layers, like a ResNet-20 (41); the two products of attention are 5
million more.  Axes: B batch, N tokens, C channels, H heads, D channels of one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.models.arguments import whole
from toolchain.models.initialization import truncated_normal
from toolchain.models.registry import register
from toolchain.models.tokens import Patches, TwoLayers, patch_count

POOLS = ("mean", "token")


class Attention(nn.Module):
    """Multi-head self-attention out of matrix products, which every runtime has."""

    def __init__(self, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.shape = (-1, tokens, heads, width // heads)
        # A layer each: side by side in one, q, k and v would share one quantization grid.
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.scale = (width // heads) ** -0.5

    def forward(self, x_BNC: Tensor) -> Tensor:
        q_BHND = self.q(x_BNC).reshape(self.shape).transpose(1, 2)
        k_BHDN = self.k(x_BNC).reshape(self.shape).permute(0, 2, 3, 1)
        v_BHND = self.v(x_BNC).reshape(self.shape).transpose(1, 2)
        seen_BHNN = (torch.matmul(q_BHND, k_BHDN) * self.scale).softmax(-1)
        return self.proj(torch.matmul(seen_BHNN, v_BHND).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two layers, each beside a shortcut and behind a norm."""

    def __init__(self, tokens: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(tokens, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TwoLayers(width, hidden)

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attn(self.norm1(x_BNC))
        return x_BNC + self.mlp(self.norm2(x_BNC))


class ViT(nn.Module):
    """Patches, positions, ``depth`` blocks, and a linear classifier of one token or of their mean.

    The class token and its position are one vector, because nothing reads either without the other.
    """

    def __init__(
        self,
        patches: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        classes: int,
        in_channels: int,
        pool: str,
    ) -> None:
        super().__init__()
        self.class_token = pool == "token"
        tokens = patches + self.class_token
        self.patches = Patches(in_channels, width, patch)
        self.position_NC = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*[Block(tokens, width, heads, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)
        truncated_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x_BNC = self.patches(x)
        if self.class_token:
            x_BNC = F.pad(x_BNC, (0, 0, 1, 0))
        x_BNC = self.norm(self.blocks(x_BNC + self.position_NC))
        return self.classifier(x_BNC[:, 0] if self.class_token else x_BNC.mean(1))


@register("vit")
def vit(
    image_size: int = 32,
    patch: int = 4,
    width: int = 96,
    depth: int = 6,
    heads: int = 3,
    mlp_ratio: int = 4,
    classes: int = 10,
    in_channels: int = 3,
    pool: str = "mean",
) -> nn.Module:
    """A Vision Transformer for square images; ``pool`` is mean (over the tokens) or token (a class token).

    Raises:
        ConfigError: An argument is not accepted, the patches do not tile the image, or the heads do not
            divide the width.
    """
    if whole("width", width) % whole("heads", heads):
        raise ConfigError(
            f"model.args.heads: {heads} given for width {width}; accepted: a divisor of width"
        )
    if pool not in POOLS:
        raise ConfigError(f"model.args.pool: {pool!r} given; accepted: {', '.join(POOLS)}")
    return ViT(
        patch_count(image_size, patch),
        patch,
        width,
        whole("depth", depth),
        heads,
        width * whole("mlp_ratio", mlp_ratio),
        whole("classes", classes),
        whole("in_channels", in_channels),
        pool,
    )
