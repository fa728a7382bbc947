"""The Vision Transformer against torch's own encoder layer, and what its tokens know of each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolchain.distillation.spots import capture
from toolchain.models.registry import build
from toolchain.structure.cost import network_macs, network_parameters

SMALL: dict[str, Any] = {"image_size": 8, "patch": 2, "width": 12, "depth": 2, "heads": 3}


def vit(**args: Any) -> nn.Module:
    """In float64, with weights that make attention differ between tokens."""
    torch.manual_seed(0)
    network = build("vit", **{**SMALL, **args}).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def encoder_layer(block: Any, heads: int) -> nn.TransformerEncoderLayer:
    """torch's own pre-norm layer with the weights of ``block``."""
    width, hidden = block.mlp.fc1.in_features, block.mlp.fc1.out_features
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.double
    )
    attention = block.attn
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([getattr(attention, n).weight for n in "qkv"]),
            "self_attn.in_proj_bias": torch.cat([getattr(attention, n).bias for n in "qkv"]),
            **{f"self_attn.out_proj.{k}": v for k, v in attention.proj.state_dict().items()},
            **{f"linear1.{k}": v for k, v in block.mlp.fc1.state_dict().items()},
            **{f"linear2.{k}": v for k, v in block.mlp.fc2.state_dict().items()},
            **{
                f"norm{i}.{k}": v
                for i in (1, 2)
                for k, v in block.get_submodule(f"norm{i}").state_dict().items()
            },
        }
    )
    return layer.train()  # without dropout; in eval mode torch takes a fused path of its own


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_a_block_is_torchs_encoder_layer(pool: str) -> None:
    network: Any = vit(pool=pool)
    x_BNC = torch.randn(3, 16 + (pool == "token"), 12, dtype=torch.double)
    for block in network.blocks:
        torch.testing.assert_close(
            block(x_BNC), encoder_layer(block, 3)(x_BNC), rtol=1e-9, atol=1e-9
        )


def test_patches_are_read_row_by_row() -> None:
    network: Any = vit()
    x_BCHW = torch.randn(1, 3, 8, 8, dtype=torch.double)
    tokens_BNC = network.patches(x_BCHW)
    conv = network.patches.conv
    for row, column in ((0, 0), (0, 3), (2, 1)):
        patch = x_BCHW[0, :, 2 * row :, 2 * column :][:, :2, :2]
        wanted_C = torch.einsum("cihw,ihw->c", conv.weight, patch) + conv.bias
        torch.testing.assert_close(tokens_BNC[0, 4 * row + column], wanted_C)


def test_a_class_token_starts_the_same_for_every_image() -> None:
    network: Any = vit(pool="token")
    seen: list[Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.randn(2, 3, 8, 8, dtype=torch.double))
    (x_BNC,) = seen
    assert x_BNC.shape == (2, 17, 12)
    assert torch.equal(x_BNC[0, 0], network.position_NC[0])
    assert torch.equal(x_BNC[1, 0], network.position_NC[0])


def test_outputs_of_blocks_are_tokens() -> None:
    network = vit()
    with capture(network, ["blocks.0", "blocks.1"]) as found:
        network(torch.randn(2, 3, 8, 8, dtype=torch.double))
    assert {spot: tuple(x.shape) for spot, x in found.items()} == {
        "blocks.0": (2, 16, 12),
        "blocks.1": (2, 16, 12),
    }


def test_it_costs_what_its_docstring_says() -> None:
    network = build("vit")
    assert round(network_macs(network, (3, 32, 32)) / 1e6) == 43
    assert round(network_parameters(network) / 1e3) == 683


def test_the_seed_decides_its_weights() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build("vit", **SMALL).state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["position_NC"], other["position_NC"])
