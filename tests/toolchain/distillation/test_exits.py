"""Exit branches: logits from any stage, in the sizes of small images, started as the paper does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deploy.errors import ConfigError
from toolchain.distillation.exits import PatchMerging, TokenExit, exit_branch

stages = st.integers(1, 6).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))
maps = st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12))
tokens = st.builds(
    lambda side, has_class, c: (side**2 + has_class, c),
    st.integers(1, 15),
    st.booleans(),
    st.integers(1, 6),
)


def kinds(branch: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in branch.modules() if isinstance(module, kind)]


@given(maps | tokens | st.tuples(st.integers(1, 6)), stages, st.sampled_from([1, 6, 8]))
def test_every_branch_ends_in_the_classes_and_learns(
    own: tuple[int, ...], where: tuple[int, int], width: int
) -> None:
    branch = exit_branch(torch.Size((3, *own)), 5, stage=where[0], stages=where[1], width=width)
    logits_BC = branch(torch.randn(3, *own))
    assert logits_BC.shape == (3, 5)
    logits_BC.square().sum().backward()
    assert all(p.grad is not None for p in branch.parameters())


@pytest.mark.parametrize(("stage", "blocks"), [(1, 3), (2, 2), (3, 1), (4, 0)])
def test_earlier_stages_of_maps_get_longer_branches(stage: int, blocks: int) -> None:
    branch = exit_branch(torch.Size((2, 16, 56, 56)), 10, stage=stage, stages=4, width=100)
    convs = [conv for conv in branch.modules() if isinstance(conv, nn.Conv2d)]
    assert len(convs) == max(4 * blocks, 1)
    assert sum(conv.stride == (2, 2) for conv in convs) == blocks
    assert len(kinds(branch, nn.BatchNorm2d)) == len(kinds(branch, nn.ReLU)) == 2 * blocks
    outs = [conv.out_channels for conv in convs if conv.groups == 1]
    assert outs == [[100], [16, 100], [16, 32, 32, 100], [16, 32, 32, 64, 64, 100]][blocks]


def test_of_many_stages_early_ones_have_the_longest_branch_of_the_paper() -> None:
    branch = exit_branch(torch.Size((2, 8, 8, 8)), 10, stage=1, stages=17, width=64)
    assert len(kinds(branch, nn.Conv2d)) == 12


def test_small_maps_are_not_halved() -> None:
    branch = exit_branch(torch.Size((2, 16, 8, 8)), 10, stage=1, stages=4, width=64)
    strides = [conv.stride for conv in branch.modules() if isinstance(conv, nn.Conv2d)]
    assert strides[::4] == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize(("stage", "blocks"), [(1, 3), (2, 2), (3, 1), (4, 1)])
def test_earlier_stages_of_tokens_get_more_blocks(stage: int, blocks: int) -> None:
    branch = exit_branch(torch.Size((2, 64, 12)), 10, stage=stage, stages=4, width=12)
    layers = kinds(branch, nn.TransformerEncoderLayer)
    assert len(layers) == blocks
    assert {layer.self_attn.num_heads for layer in layers} == {4}


@pytest.mark.parametrize(
    ("side", "left"), [(4, 4), (7, 7), (8, 4), (9, 5), (14, 7), (16, 4), (28, 7)]
)
@pytest.mark.parametrize("class_token", [0, 1])
def test_grids_are_merged_until_they_are_7_or_smaller(
    side: int, left: int, class_token: int
) -> None:
    branch = exit_branch(torch.Size((2, side**2 + class_token, 8)), 10, stage=4, stages=4, width=8)
    assert isinstance(branch, TokenExit)
    merged = branch.merging(torch.randn(2, side**2 + class_token, 8))
    assert merged.shape == (2, left**2 + class_token, 8)


def test_neighbours_are_merged_and_the_class_token_is_not() -> None:
    merging = PatchMerging(17, 3, 5)
    x_BNC = torch.randn(1, 17, 3, requires_grad=True)
    y_BNC = merging(x_BNC)
    (gradient,) = torch.autograd.grad(y_BNC[0, 1 + 2].square().sum(), x_BNC)  # row 1, column 0
    reached = gradient[0].abs().sum(1).nonzero().flatten().tolist()
    assert reached == [1 + 8, 1 + 9, 1 + 12, 1 + 13]
    (gradient,) = torch.autograd.grad(merging(x_BNC)[0, 0].sum(), x_BNC)
    assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [0]


def test_the_class_token_decides_where_there_is_one() -> None:
    with_token = exit_branch(torch.Size((2, 17, 4)), 3, stage=1, stages=1, width=4).eval()
    assert isinstance(with_token, TokenExit)
    with_token.blocks = nn.Sequential()
    x_BNC = torch.randn(2, 17, 4)
    other = x_BNC.clone()
    other[:, 1:] = 0
    assert torch.equal(with_token(x_BNC), with_token(other))


def test_layers_start_as_the_paper_says() -> None:
    torch.manual_seed(0)
    branch = exit_branch(torch.Size((2, 64, 96)), 10, stage=1, stages=4, width=96)
    for module in branch.modules():
        if isinstance(module, nn.Linear):
            assert 0.015 < module.weight.std() < 0.025
            assert module.weight.abs().max() <= 2.0
            assert not module.bias.any()
        if isinstance(module, nn.MultiheadAttention):
            assert 0.015 < module.in_proj_weight.std() < 0.025
    last = exit_branch(torch.Size((2, 64, 8, 8)), 10, stage=4, stages=4, width=128)
    conv = last[0]
    assert isinstance(conv, nn.Conv2d)
    assert abs(conv.weight.std() - (2 / 128) ** 0.5) < 0.01  # fan-out of a 1x1 convolution


@pytest.mark.parametrize("own", [(12, 4), (3, 4, 4, 4), (0, 4)])
def test_other_shapes_are_refused(own: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        exit_branch(torch.Size((2, *own)), 10, stage=1, stages=2, width=8)
    assert str(own) in str(error.value)
    assert "\n" not in str(error.value)
