"""A plain multi-layer perceptron: flatten, then linear, norm and ReLU, then linear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toolchain.models.arguments import whole, whole_list
from toolchain.models.registry import register


class Mlp(nn.Module):
    """Hidden layers of the given widths over ``features`` inputs."""

    def __init__(self, features: int, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            # The norm's shift stands in for the bias.
            layers.append(nn.Linear(features, width, bias=False))
            layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU())
            features = width
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(torch.flatten(x, 1)))


@register("mlp")
def mlp(
    input_shape: Sequence[int] = (1, 8, 8),
    hidden: Sequence[int] = (256, 128),
    classes: int = 10,
) -> nn.Module:
    """An MLP over images of ``input_shape`` (channels, height, width).

    Weights start as in He et al. 2015, https://arxiv.org/abs/1502.01852, equation 10.

    Raises:
        ConfigError: An argument is not accepted.
    """
    features = math.prod(whole_list("input_shape", input_shape))
    return Mlp(features, whole_list("hidden", hidden), whole("classes", classes))
