"""A slim network computes what the masked one computes, whatever is cut and whatever is attached."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.errors import StructureError
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_teacher_norms, attach_views, bare_names
from toolchain.structure.branches import find_branches
from toolchain.structure.groups import find_groups
from toolchain.structure.masks import bake, kept_channels, mask_channels, vanishing
from toolchain.structure.plan import Branch, ChannelPlan, Group, Slice
from toolchain.structure.slim import compose, cut, plan_of, slice_module, slice_state

NETS = {
    "resnet-pad": ("cifar_resnet", {"depth": 14, "width": 4}, (3, 8, 8)),
    "resnet-conv": ("cifar_resnet", {"depth": 14, "width": 4, "shortcut": "conv"}, (3, 8, 8)),
    "vgg": ("vgg", {"widths": [6, "M", 8, 10]}, (3, 8, 8)),
    "mobilenet": (
        "mobilenet_v2",
        {"multiplier": 0.25, "stages": [[1, 8, 1, 1], [2, 16, 3, 2]]},
        (3, 8, 8),
    ),
    "ds-cnn": ("ds_cnn", {"channels": 10, "blocks": 2}, (1, 20, 10)),
    "mlp": ("mlp", {"hidden": [12, 10], "input_shape": [1, 4, 4]}, (1, 4, 4)),
}
WITH_BRANCHES = ("resnet-pad", "resnet-conv", "mobilenet")
LARGEST = 1.0  # all but one channel of every group


def built(name: str) -> fx.GraphModule:
    """The network with weights, factors (some negative) and statistics that are all different."""
    builtin, args, _ = NETS[name]
    network = trace(registry.build(builtin, **args)).eval()
    shake(network)
    return network


def shake(network: nn.Module, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                spread = (2 / module.weight[0].numel()) ** 0.5
                module.weight.normal_(0.0, spread, generator=random)
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0.0, 0.2, generator=random)
                module.running_var.uniform_(0.5, 2.0, generator=random)
                if module.affine:
                    module.weight.normal_(0.3, 1.0, generator=random)
                    module.bias.normal_(0.0, 0.3, generator=random)


@cache
def structure(name: str) -> tuple[list[Group], list[Branch]]:
    network = built(name)
    groups = [g for g in find_groups(network, NETS[name][2], trial=False) if g.reason is None]
    branches = [b for b in find_branches(network, NETS[name][2]) if b.reason is None]
    return groups, branches


def some_channels(groups: Sequence[Group], sparsity: float, seed: int) -> dict[str, list[int]]:
    random = torch.Generator().manual_seed(seed)
    return {
        g.name: sorted(
            torch.randperm(g.channels, generator=random)[
                : max(1, g.channels - round(sparsity * g.channels))
            ].tolist()
        )
        for g in groups
    }


def slim_of(
    plain: fx.GraphModule,
    masked: fx.GraphModule,
    plan: ChannelPlan,
    quantization: Quantization | None,
) -> fx.GraphModule:
    """A network of the plan's shape with the masked network's own, sliced tensors."""
    slim = cut(plain, plan)
    state = slice_state(masked, masked.state_dict(), plan)
    if quantization is None:
        state = bare_names(state)
    else:
        attach_quantizers(slim, quantization)
    slim.to(next(masked.parameters()).dtype)  # before loading, or steps would be rounded
    slim.load_state_dict({key: state[key] for key in slim.state_dict()})
    return slim.train(masked.training)


def masked_and_slim(
    name: str,
    sparsity: float,
    quantization: Quantization | None,
    removed: Sequence[Branch] = (),
    seed: int = 0,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    plain, shape = built(name), NETS[name][2]
    groups, _ = structure(name)
    masked = copy.deepcopy(plain)
    bypassed: frozenset[str] = frozenset()
    if quantization is None:
        attach_views(masked)
    else:
        attach_quantizers(masked, quantization)
        calibrate(masked, [torch.randn(8, *shape)])
        gone = cut(plain, ChannelPlan(removed={b.add: b.kept for b in removed}))
        attach_quantizers(gone, quantization)
        bypassed = vanishing(masked, gone)
    mask_channels(masked, groups, some_channels(groups, sparsity, seed), removed, bypassed)
    kept = kept_channels(masked, groups, removed)
    plan = plan_of(plain, groups, kept, {b.add: b.kept for b in removed})
    return masked, slim_of(plain, masked, plan, quantization)


def difference(one: nn.Module, two: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        a, b = one(x), two(x)
    return float((a - b).abs().max() / a.abs().max().clamp_min(1.0))


QUANTIZED = [None, Quantization(), Quantization(bits=4, kind="minmax")]


@pytest.mark.parametrize("quantization", QUANTIZED, ids=["float", "lsq8", "minmax4"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, LARGEST])
@pytest.mark.parametrize("name", NETS)
def test_slim_equals_masked(name: str, sparsity: float, quantization: Quantization | None) -> None:
    masked, slim = masked_and_slim(name, sparsity, quantization)
    x = torch.randn(4, *NETS[name][2])
    if quantization is None:
        assert difference(masked, slim, x) <= 1e-5
    masked, slim = masked.double(), slim.double()
    assert difference(masked, slim, x.double()) <= 1e-12
    before, after = weights_of(masked), weights_of(slim)
    assert (after < before) == (sparsity > 0)


def weights_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("quantization", QUANTIZED, ids=["float", "lsq8", "minmax4"])
@pytest.mark.parametrize("which", ["first", "last", "all"])
@pytest.mark.parametrize("name", WITH_BRANCHES)
def test_slim_equals_masked_without_branches(
    name: str, which: str, quantization: Quantization | None
) -> None:
    branches = structure(name)[1]
    removed = {"first": branches[:1], "last": branches[-1:], "all": branches}[which]
    masked, slim = masked_and_slim(name, 0.3, quantization, removed)
    x = torch.randn(4, *NETS[name][2], dtype=torch.float64)
    assert difference(masked.double(), slim.double(), x) <= 1e-12
    paths = dict(slim.named_modules())
    assert not any(module in paths for branch in removed for module in branch.modules)


@settings(max_examples=12)
@given(data=st.data())
def test_any_choice_of_channels_and_branches(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(WITH_BRANCHES))
    removed = [b for b in structure(name)[1] if data.draw(st.booleans())]
    quantization = data.draw(st.sampled_from(QUANTIZED))
    sparsity = data.draw(st.floats(0, 1))
    masked, slim = masked_and_slim(name, sparsity, quantization, removed, data.draw(st.integers(0)))
    x = torch.randn(2, *NETS[name][2], dtype=torch.float64)
    assert difference(masked.double(), slim.double(), x) <= 1e-12


@pytest.mark.parametrize("name", NETS)
def test_training_mode_too(name: str) -> None:
    masked, slim = masked_and_slim(name, 0.5, None)
    x = torch.randn(6, *NETS[name][2], dtype=torch.float64)
    assert difference(masked.double().train(), slim.double().train(), x) <= 1e-10


class NoAffine(nn.Module):
    """A masked channel is not zero behind these batch norms; its readers have to ignore it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=True)
        self.norm1 = nn.BatchNorm2d(6, affine=False)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(6, affine=False)
        self.shortcut = PadShortcut(6, 9, 2)
        self.down = nn.Conv2d(6, 9, 3, 2, padding=1)
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv(x)))
        x = F.relu(self.down(x) + self.shortcut(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("sparsity", [0.3, LARGEST])
def test_batch_norm_without_affine(sparsity: float) -> None:
    plain = trace(NoAffine()).double().eval()
    shake(plain)
    groups = [g for g in find_groups(plain, (3, 8, 8), trial=False) if g.reason is None]
    assert {part.module for g in groups for part in g.slices} >= {"norm1", "norm2", "shortcut"}
    masked = copy.deepcopy(plain)
    attach_views(masked)
    mask_channels(masked, groups, some_channels(groups, sparsity, 1))
    plan = plan_of(plain, groups, kept_channels(masked, groups))
    slim = slim_of(plain, masked, plan, None)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert difference(masked, slim, x) <= 1e-12
    assert difference(plain, masked, x) > 1e-3


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    F.cross_entropy(network(x), labels).backward()
    optimizer.step()


def test_slicing_in_the_middle_of_qat_keeps_scales_and_momentum_in_step() -> None:
    """Cut after three steps, then one more: as if the masked network had made it, and then was cut."""
    plain, quantization = built("resnet-pad").double(), Quantization(bits=4)
    groups, _ = structure("resnet-pad")
    masked = copy.deepcopy(plain)
    attach_quantizers(masked, quantization)
    masked.double()
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 8, 8, generator=random, dtype=torch.float64)
    labels = torch.randint(10, (8,), generator=random)
    calibrate(masked, [x])
    mask_channels(masked, groups, some_channels(groups, 0.5, 3))
    masked.train()
    settings = {"lr": 0.01, "momentum": 0.9, "nesterov": True}
    optimizer = torch.optim.SGD(masked.parameters(), **settings)
    for _ in range(3):
        train_step(masked, optimizer, x, labels)

    plan = plan_of(plain, groups, kept_channels(masked, groups))
    slim = slim_of(plain, masked, plan, quantization)
    start = {name: tensor.clone() for name, tensor in slim.state_dict().items()}
    momentum = {
        name: optimizer.state[p]["momentum_buffer"]
        for name, p in masked.named_parameters()
        if optimizer.state[p].get("momentum_buffer") is not None
    }
    sliced = slice_state(masked, momentum, plan)
    continued = torch.optim.SGD(slim.parameters(), **settings)
    for name, p in slim.named_parameters():
        assert sliced[name].shape == p.shape, name
        continued.state[p]["momentum_buffer"] = sliced[name].clone()
    train_step(masked, optimizer, x, labels)
    train_step(slim, continued, x, labels)
    expected = slice_state(masked, masked.state_dict(), plan)
    got = slim.state_dict()
    moved = 0.0
    for name, tensor in got.items():
        if name.rsplit(".", 1)[-1] in ("scale", "scale_O"):
            continue  # their step is scaled by the number of features, which the cut changed
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-11)
        moved += float((tensor.double() - start[name].double()).abs().sum())
    assert moved > 0.1
    for name in (n for n in start if n.endswith(("scale", "scale_O"))):
        assert start[name].shape == expected[name].shape
        assert not torch.equal(got[name], start[name]), name


def test_scales_momentum_and_teacher_norms_are_cut_by_position() -> None:
    """Every tensor by the name it has in an attached network, against indexing by hand."""
    network = built("vgg")
    groups, _ = structure("vgg")
    attach_quantizers(network, Quantization())
    attach_teacher_norms(network)
    kept = {groups[0].name: (1, 3, 5)}
    plan = plan_of(built("vgg"), groups, kept)
    random = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(tensor.shape, generator=random)
        for name, tensor in network.state_dict().items()
    }
    sliced = slice_state(network, state, plan)
    producer, norm, reader = "features.0", "features.1", "features.4"
    weight = "parametrizations.weight"
    by_hand = {
        f"{producer}.{weight}.original": (0,),
        f"{producer}.{weight}.0.keep_O": (0,),
        f"{producer}.{weight}.0.quantizer.scale_O": (0,),
        f"{norm}.{weight}.original": (0,),
        f"{norm}.{weight}.0.keep_O": (0,),
        f"{norm}.parametrizations.bias.original": (0,),
        f"{norm}.parametrizations.bias.0.keep_O": (0,),
        f"{norm}.running_mean": (0,),
        f"{norm}.running_var": (0,),
        f"{norm}.teacher.weight": (0,),
        f"{norm}.teacher.bias": (0,),
        f"{norm}.teacher.running_mean": (0,),
        f"{norm}.teacher.running_var": (0,),
        f"{reader}.{weight}.original": (1,),
        f"{reader}.{weight}.0.keep_I": (0,),
    }
    index = torch.tensor([1, 3, 5])
    for name, tensor in sliced.items():
        wanted = state[name]
        for dim in by_hand.get(name, ()):
            wanted = wanted.index_select(dim, index)
        assert torch.equal(tensor, wanted), name
    assert set(by_hand) <= set(sliced)


@given(data=st.data())
def test_compose_is_one_cut_after_the_other(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["resnet-pad", "vgg"]))
    plain = built(name)
    groups, branches = structure(name)
    first = plan_of(
        plain, groups, some_channels(groups, data.draw(st.floats(0, 0.6)), 1), removal(branches[:1])
    )
    once = cut(plain, first)
    shape = NETS[name][2]
    again = [g for g in find_groups(once, shape, trial=False) if g.reason is None]
    second = plan_of(
        once,
        again,
        some_channels(again, data.draw(st.floats(0, 0.9)), 2),
        removal(find_branches(once, shape)[-1:]),
    )
    twice, at_once = cut(once, second), cut(plain, compose(first, second))
    assert {k: v.shape for k, v in twice.state_dict().items()} == {
        k: v.shape for k, v in at_once.state_dict().items()
    }
    x = torch.randn(2, *shape)
    assert torch.equal(twice(x), at_once(x))


def removal(branches: Sequence[Branch]) -> dict[str, int]:
    return {branch.add: branch.kept for branch in branches}


def test_a_cut_does_not_touch_the_original() -> None:
    plain = built("resnet-pad")
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    groups, branches = structure("resnet-pad")
    cut(plain, plan_of(plain, groups, some_channels(groups, 0.5, 0), removal(branches)))
    assert all(torch.equal(tensor, before[k]) for k, tensor in plain.state_dict().items())
    assert plain.get_submodule("layer2.0.shortcut").source_O.tolist() == [
        -1,
        -1,
        0,
        1,
        2,
        3,
        -1,
        -1,
    ]


@given(data=st.data())
def test_pad_shortcut_is_cut_like_the_array_it_makes(data: st.DataObject) -> None:
    module = PadShortcut(4, 8, 2)
    out = sorted(data.draw(st.sets(st.integers(0, 7), min_size=1)))
    in_ = sorted(data.draw(st.sets(st.integers(0, 3), min_size=1)))
    x = torch.randn(2, 4, 5, 5)
    hidden = torch.zeros(4)
    hidden[in_] = 1
    wanted = module(x * hidden.view(1, -1, 1, 1))[:, out]
    slice_module(module, out, in_)
    assert (module.in_channels, module.out_channels) == (len(in_), len(out))
    assert torch.equal(module(x[:, in_]), wanted)


def test_a_plan_survives_json() -> None:
    plan = ChannelPlan({"a": (0, 2)}, {"b": (1,)}, {"add_1": 1})
    assert ChannelPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("module", "out", "in_", "message"),
    [
        (nn.Conv2d(4, 4, 3), (), None, "all output channels of a Conv2d"),
        (nn.Linear(4, 4), None, (), "all input channels of a Linear"),
        (nn.Conv2d(4, 4, 3, groups=2), (0, 1), None, "groups=2"),
        (nn.LayerNorm(4), (0, 1), None, "a LayerNorm cannot be cut"),
    ],
)
def test_what_cannot_be_cut_is_told(
    module: nn.Module, out: tuple[int, ...] | None, in_: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(StructureError, match=message) as error:
        slice_module(module, out, in_)
    assert "\n" not in str(error.value)


def test_a_transposed_convolution_is_cut_on_its_own_axes() -> None:
    module = nn.ConvTranspose2d(4, 6, 2, stride=2)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    slice_module(module, (0, 5), (1, 2, 3))
    assert torch.equal(module.weight, weight[[1, 2, 3]][:, [0, 5]])
    assert torch.equal(module.bias, bias[[0, 5]])


def test_a_depthwise_convolution_follows_either_side() -> None:
    for out, in_ in (((0, 3), None), (None, (0, 3))):
        module = nn.Conv2d(4, 4, 3, groups=4)
        weight = module.weight.detach().clone()
        slice_module(module, out, in_)
        assert torch.equal(module.weight, weight[[0, 3]])
        assert module(torch.randn(1, 2, 5, 5)).shape == (1, 2, 3, 3)


def test_a_group_of_one_slice_is_enough() -> None:
    network = trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    group = Group("0", 4, (Slice("0", "out", tuple((c,) for c in range(4))),))
    plan = plan_of(network, [group], {"0": (0, 1)})
    assert (plan.out, plan.in_) == ({"0": (0, 1)}, {})
    assert plan_of(network, [group], {"0": range(4)}) == ChannelPlan()


def test_bake_changes_nothing_that_the_student_computes() -> None:
    masked, _ = masked_and_slim("resnet-pad", 0.5, Quantization())
    x = torch.randn(2, 3, 8, 8)
    before = masked(x)
    bake(masked)
    assert torch.equal(masked(x), before)
