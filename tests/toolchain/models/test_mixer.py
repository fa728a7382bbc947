"""The MLP-Mixer against its two equations, written out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.models.registry import build
from toolchain.structure.cost import network_macs

SMALL: dict[str, Any] = {
    "image_size": 8,
    "patch": 2,
    "width": 6,
    "depth": 2,
    "token_hidden": 5,
    "mlp_ratio": 2,
}


def mixer() -> Any:
    torch.manual_seed(0)
    network = build("mixer", **SMALL).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def normed(x_BNC: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x_BNC - x_BNC.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        + norm.bias
    )


def test_a_block_mixes_tokens_and_then_channels() -> None:
    network = mixer()
    x_BNC = torch.randn(3, 16, 6, dtype=torch.double)
    for block in network.blocks:
        tokens, channels = block.token_mlp, block.mlp
        h_BTC = torch.einsum("tn,bnc->btc", tokens.fc1.weight, normed(x_BNC, block.norm1))
        h_BTC = F.gelu(h_BTC + tokens.fc1.bias[:, None])
        u_BNC = (
            x_BNC + torch.einsum("nt,btc->bnc", tokens.fc2.weight, h_BTC) + tokens.fc2.bias[:, None]
        )
        h_BNH = F.gelu(normed(u_BNC, block.norm2) @ channels.fc1.weight.T + channels.fc1.bias)
        wanted_BNC = u_BNC + h_BNH @ channels.fc2.weight.T + channels.fc2.bias
        torch.testing.assert_close(block(x_BNC), wanted_BNC, rtol=1e-9, atol=1e-9)


def test_the_logits_are_a_linear_layer_of_the_mean_token() -> None:
    network = mixer()
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    x_BNC = network.norm(network.blocks(network.patches(images)))
    torch.testing.assert_close(network(images), network.classifier(x_BNC.mean(1)))


def test_it_costs_what_its_docstring_says() -> None:
    assert round(network_macs(build("mixer"), (3, 32, 32)) / 1e6) == 44
