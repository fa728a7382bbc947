"""Masks hide exactly what they name, and what is hidden holds still while an optimizer works."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolchain.graph import trace
from toolchain.models import registry
from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import (
    ViewedPadShortcut,
    attach_teacher_norms,
    attach_views,
    latent_parameter,
    weight_view,
    weighted,
)
from toolchain.quantization.views import View, use_view
from toolchain.structure.branches import find_branches
from toolchain.structure.groups import find_groups
from toolchain.structure.masks import (
    HeldStill,
    attach_element_masks,
    bake,
    hidden_share,
    kept_channels,
    mask_channels,
    mask_weights,
    vanishing,
)
from toolchain.structure.plan import Branch, ChannelPlan, Group
from toolchain.structure.slim import cut

SHAPE = (3, 8, 8)


def plain_network(shortcut: str = "pad") -> fx.GraphModule:
    torch.manual_seed(0)
    network = trace(registry.build("cifar_resnet", depth=14, width=4, shortcut=shortcut))
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.weight, 0.5, 0.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@cache
def structure(shortcut: str = "pad") -> tuple[list[Group], list[Branch]]:
    network = plain_network(shortcut)
    groups = [g for g in find_groups(network, SHAPE, trial=False) if g.reason is None]
    return groups, find_branches(network, SHAPE)


def attached(bits: int | None = None, shortcut: str = "pad") -> fx.GraphModule:
    network = plain_network(shortcut)
    if bits is None:
        attach_views(network)
    else:
        attach_quantizers(network, Quantization(bits=bits))
        calibrate(network, [torch.randn(16, *SHAPE)])
    return network


def half(groups: list[Group]) -> dict[str, tuple[int, ...]]:
    """Every second channel."""
    return {group.name: tuple(range(0, group.channels, 2)) for group in groups}


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(count, *SHAPE, generator=random)
    return images, torch.randint(10, (count,), generator=random)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("bits", [None, 4])
def test_a_masked_weight_is_exactly_zero(bits: int | None) -> None:
    network = attached(bits)
    groups, _ = structure()
    mask_channels(network, groups, half(groups))
    hidden = 0
    for group in groups:
        for part in group.slices:
            module = network.get_submodule(part.module)
            gone = [p for c in range(1, group.channels, 2) for p in part.index[c]]
            for name in ("weight", "bias"):
                tensor = getattr(module, name, None)
                if tensor is None or (part.axis == "in" and name == "bias"):
                    continue
                lost = tensor[gone] if part.axis == "out" else tensor[:, gone]
                assert not lost.any()
                hidden += lost.numel()
    assert hidden > 1000


def test_masks_are_set_anew_each_time() -> None:
    network, (groups, branches) = attached(8), structure()
    before = state_of(network)
    gone = cut(plain_network(), ChannelPlan(removed={branches[0].add: branches[0].kept}))
    attach_quantizers(gone, Quantization())
    mask_channels(network, groups, half(groups), branches[:1], vanishing(network, gone))
    assert state_of(network).keys() == before.keys()
    first = state_of(network)
    assert not all(torch.equal(first[name], before[name]) for name in before)
    mask_channels(network, groups, half(groups), branches[:1], vanishing(network, gone))
    assert all(torch.equal(tensor, first[name]) for name, tensor in network.state_dict().items())
    mask_channels(network, groups, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(m.masked for m in network.modules() if isinstance(m, ViewedPadShortcut))
    assert not any(m.bypassed for m in network.modules() if isinstance(m, ActivationQuantizer))
    assert hidden_share(network) == 0.0


@pytest.mark.parametrize("bits", [None, 8])
def test_other_views_do_not_see_masks(bits: int | None) -> None:
    plain, network = plain_network(), attached(bits)
    groups, branches = structure()
    mask_channels(network, groups, half(groups), branches[1:2])
    x, _ = batch()
    with use_view(network, View.LATENT):
        assert torch.equal(network(x), plain(x))
    if bits is None:
        attach_teacher_norms(network)
        with use_view(network, View.TEACHER):
            torch.testing.assert_close(network(x), plain(x))
    assert not torch.allclose(network(x), plain(x), atol=1e-2)


@given(data=st.data())
def test_kept_channels_are_what_was_kept(data: st.DataObject) -> None:
    network = attached()
    groups, branches = structure()
    removed = [branch for branch in branches if data.draw(st.booleans())]
    kept = {
        g.name: tuple(sorted(data.draw(st.sets(st.integers(0, g.channels - 1), min_size=1))))
        for g in groups
    }
    mask_channels(network, groups, kept, removed)
    gone = {name for branch in removed for name in branch.modules}
    wanted = {
        g.name: kept[g.name]
        for g in groups
        if len(kept[g.name]) < g.channels
        and any(p.axis == "out" and p.module not in gone for p in g.slices)
    }
    assert kept_channels(network, groups, removed) == wanted


def test_a_stream_is_read_outside_the_removed_branches() -> None:
    """The first producer of layer2's stream lies in its first branch, which masks all of it."""
    network = attached()
    groups, branches = structure()
    stream = next(g for g in groups if g.name == "layer2.0.conv2")
    assert stream.slices[0].module in branches[2].modules
    removed = branches[2:4]
    mask_channels(network, groups, {stream.name: (0, 3)}, removed)
    assert kept_channels(network, groups, removed) == {stream.name: (0, 3)}


def test_quantizers_that_vanish_with_a_branch() -> None:
    """Behind a nonnegative shortcut the sum's grid goes; behind a signed one, the shortcut's."""
    found = {}
    for shortcut in ("pad", "conv"):
        network, branch = attached(8, shortcut), structure(shortcut)[1][2]
        gone = cut(plain_network(shortcut), ChannelPlan(removed={branch.add: branch.kept}))
        attach_quantizers(gone, Quantization())
        found[shortcut] = vanishing(network, gone)
        names = {name for name, m in network.named_modules() if isinstance(m, ActivationQuantizer)}
        assert found[shortcut] < names
    inside = {"quantizers.relu_5", "quantizers.layer2_0_bn2"}
    assert found["pad"] == inside | {"quantizers.relu_6"}
    assert found["conv"] == inside | {"quantizers.layer2_0_shortcut_1"}


@given(sparsity=st.floats(0, 1))
def test_single_weights_fall_by_size_over_all_layers(sparsity: float) -> None:
    network = attached()
    attach_element_masks(network)
    mask_weights(network, sparsity)
    hidden, seen = [], []
    for _, module in weighted(network):
        view, latent = weight_view(module), latent_parameter(module, "weight").detach()
        assert view is not None and view.keep_OX is not None
        hidden.append(latent[~view.keep_OX].abs())
        seen.append(latent[view.keep_OX].abs())
    out, kept = torch.cat(hidden), torch.cat(seen)
    assert len(out) == round(sparsity * (len(out) + len(kept)))
    assert hidden_share(network) == pytest.approx(len(out) / (len(out) + len(kept)))
    if len(out) and len(kept):
        assert out.max() <= kept.min()


def test_element_masks_are_added_once() -> None:
    network = attached(8)
    attach_element_masks(network)
    mask_weights(network, 0.5)
    attach_element_masks(network)
    assert hidden_share(network) == pytest.approx(0.5, abs=1e-3)


@given(data=st.data())
def test_hidden_share_counts_weights(data: st.DataObject) -> None:
    network = attached()
    groups, _ = structure()
    group = data.draw(st.sampled_from(groups))
    count = data.draw(st.integers(1, group.channels))
    mask_channels(network, groups, {group.name: range(count)})
    zeros = total = 0
    for _, module in weighted(network):
        weight = module.weight
        assert isinstance(weight, Tensor)
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert hidden_share(network) == pytest.approx(zeros / total)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("side", ["important", "unimportant"])
def test_what_is_held_is_equal_to_the_bit(
    side: str, kind: str, bits: int | None, elements: bool
) -> None:
    """Both sides first move freely, so that momentum pulls at everything that is then held."""
    network = attached(bits)
    groups, _ = structure()
    images, labels = batch()
    optimizer = OPTIMIZERS[kind](network.parameters())
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    step()
    if elements:
        attach_element_masks(network)
        mask_weights(network, 0.5)
    else:
        mask_channels(network, groups, half(groups))
    held = HeldStill(network)
    before = latents_and_masks(network)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        with held.only("important" if side == "important" else "unimportant"):
            optimizer.step()
    moved = still = 0
    for name, (was, mask) in before.items():
        now = latents_and_masks(network)[name][0]
        free = mask if side == "important" else ~mask
        assert torch.equal(now[~free], was[~free]), name
        moved += int((now[free] != was[free]).sum())
        still += int((~free).sum())
    assert moved > 100 and still > 100


def latents_and_masks(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for path, module in network.named_modules():
        for name in ("weight", "bias"):
            chain = getattr(module, "parametrizations", {})
            if name in chain:
                view, latent = chain[name][0], chain[name].original.detach().clone()
                mask = view.mask()
                mask = mask.view(*mask.shape, *[1] * (latent.dim() - mask.dim()))
                found[f"{path}.{name}"] = (latent, mask.expand_as(latent).clone())
    return found


def test_guard_restores_nothing_when_the_step_fails() -> None:
    """An error inside the block is the caller's; it must come through."""
    network = attached()
    with pytest.raises(KeyError), HeldStill(network).only("important"):
        raise KeyError("step")


@pytest.mark.parametrize("bits", [None, 8])
def test_bake_makes_masks_redundant(bits: int | None) -> None:
    network = attached(bits)
    groups, _ = structure()
    mask_channels(network, groups, half(groups))
    x, _ = batch()
    before = network(x)
    bake(network)
    once = state_of(network)
    assert torch.equal(network(x), before)
    bake(network)
    assert all(torch.equal(tensor, once[name]) for name, tensor in network.state_dict().items())
    with use_view(network, View.LATENT):
        lost = [p.weight for _, p in weighted(copy.deepcopy(network))]
        assert sum(int((w == 0).sum()) for w in lost) > 1000
