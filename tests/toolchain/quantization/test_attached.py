"""One set of tensors, three networks; and nothing left once it is taken off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.errors import StructureError
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.attached import (
    VectorView,
    ViewedPadShortcut,
    attach_teacher_norms,
    attach_views,
    bare_names,
    latent_parameter,
    strip_views,
    weight_view,
    weighted,
)
from toolchain.quantization.views import View, use_view
from toolchain.quantization.weights import WeightView
from toolchain.structure.masks import views_of


def hide(network: nn.Module, share: float = 0.4) -> None:
    """Hide channels of everything that has masks, whether they belong together or not."""
    draw = torch.Generator().manual_seed(1)
    for module in network.modules():
        for view in views_of(module):
            view.keep_O.copy_(torch.rand(view.keep_O.shape, generator=draw) > share)
            if not isinstance(view, VectorView) and len(view.keep_I) > 1:
                view.keep_I.copy_(torch.rand(view.keep_I.shape, generator=draw) > share)
        if isinstance(module, ViewedPadShortcut):
            module.refresh()


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def norms(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def test_attached_and_unmasked_changes_nothing(builtin: Any) -> None:
    want = builtin.network(builtin.images)
    attach_views(builtin.network, elements=True)
    for view in View:
        with use_view(builtin.network, view):
            assert torch.equal(builtin.network(builtin.images), want)


@torch.no_grad()
def test_latent_and_teacher_views_are_the_untouched_network_whatever_is_hidden(
    builtin: Any,
) -> None:
    want = builtin.network(builtin.images)
    attach_views(builtin.network)
    attach_teacher_norms(builtin.network)
    hide(builtin.network)
    for view in (View.LATENT, View.TEACHER):
        with use_view(builtin.network, view):
            assert torch.equal(builtin.network(builtin.images), want)
    assert not torch.equal(builtin.network(builtin.images), want)


@torch.no_grad()
def test_latent_view_of_a_quantized_network_is_the_untouched_one(
    builtin: Any, quantize: Any
) -> None:
    want = builtin.network(builtin.images)
    quantize(builtin.network, builtin.images, bits=4)
    hide(builtin.network)
    with use_view(builtin.network, View.LATENT):
        assert torch.equal(builtin.network(builtin.images), want)


@torch.no_grad()
def test_teacher_of_a_quantized_network_has_the_mixed_weights(resnet: Any, quantize: Any) -> None:
    """Against a plain network whose weights are put together by hand."""
    network = resnet.network
    by_hand = copy.deepcopy(network)
    quantize(network, resnet.images, bits=4)
    attach_teacher_norms(network)
    hide(network)
    for name, module in weighted(network):
        view, latent = weight_view(module), latent_parameter(module, "weight")
        assert view is not None
        assert view.quantizer is not None
        mask = view._mask_like(latent).to(latent.dtype)
        q_OX, scale_O = view.quantizer.integers(latent * mask)
        important = q_OX * scale_O.view(-1, *[1] * (latent.dim() - 1))
        by_hand.get_submodule(name).weight.copy_(important + (1 - mask) * latent)
    with use_view(network, View.TEACHER):
        got = network(resnet.images)
    torch.testing.assert_close(got, by_hand(resnet.images), rtol=0, atol=1e-6)


def test_teacher_passes_leave_the_students_statistics_alone(builtin: Any) -> None:
    network = attach_views(builtin.network).train()
    attach_teacher_norms(network)
    before = snapshot(network)
    with use_view(network, View.TEACHER):
        network(builtin.images)
    after = snapshot(network)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    students = [name for name, _ in norms(network) if not name.endswith("teacher")]
    assert moved == {
        f"{name}.teacher.{key}"
        for name in students
        for key in ("running_mean", "running_var", "num_batches_tracked")
    }
    network(builtin.images)
    again = network.state_dict()
    for name in students:
        assert not torch.equal(again[f"{name}.running_mean"], after[f"{name}.running_mean"])
        key = f"{name}.teacher.running_mean"
        assert torch.equal(again[key], after[key])


def test_teacher_norms_follow_device_type_mode_and_options() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None, eps=0.5),
    ).double()
    attach_views(network).train()
    attach_teacher_norms(network)
    teachers = [module.teacher for module in network]
    assert [t.affine for t in teachers] == [False, True, True]
    assert [t.track_running_stats for t in teachers] == [True, False, True]
    assert (teachers[2].momentum, teachers[2].eps) == (None, 0.5)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    want = network(x)
    with use_view(network, View.TEACHER):
        assert torch.equal(network(x), want)
        network.eval()
        assert not teachers[0].training
        assert network(x).dtype == torch.float64


def test_teacher_norms_are_parameters_of_their_own() -> None:
    network = attach_views(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)))
    attach_teacher_norms(network)
    names = {name for name, _ in network.named_parameters()}
    assert {"1.teacher.weight", "1.parametrizations.weight.original"} <= names
    with use_view(network, View.TEACHER):
        network(torch.randn(4, 2, 3, 3)).square().sum().backward()
    assert network[1].teacher.bias.grad is not None
    assert latent_parameter(network[1], "bias").grad is None


def test_attaching_twice_changes_nothing(builtin: Any) -> None:
    network = attach_views(builtin.network)
    attach_teacher_norms(network)
    hide(network)
    before = snapshot(network)
    attach_views(network)
    attach_teacher_norms(network)
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_stripped_network_is_plain_and_computes_the_student(builtin: Any, share: float) -> None:
    types = {name: type(module) for name, module in builtin.network.named_modules()}
    keys = list(builtin.network.state_dict())
    network = attach_views(builtin.network)
    attach_teacher_norms(network)
    hide(network, share)
    want = network(builtin.images)
    with use_view(network, View.TEACHER):  # whatever is seen, the student is what is baked
        strip_views(network)
        assert all("view" not in vars(module) for module in network.modules())
    assert torch.equal(network(builtin.images), want)
    assert sorted(network.state_dict()) == sorted(keys)
    assert {name: type(module) for name, module in network.named_modules()} == types
    assert all(value.is_contiguous() for value in network.state_dict().values())


@torch.no_grad()
def test_stripped_quantized_network_keeps_activation_quantizers_alone(
    resnet: Any, quantize: Any
) -> None:
    network = quantize(resnet.network, resnet.images, bits=4)
    want = network(resnet.images)
    strip_views(network)
    assert torch.equal(network(resnet.images), want)
    assert not any(isinstance(m, WeightView | VectorView) for m in network.modules())


def test_pad_shortcut_hides_on_both_sides_and_by_teacher_not_at_all() -> None:
    shortcut = attach_views(nn.Sequential(PadShortcut(3, 5, 1)))
    x = torch.randn(2, 3, 4, 4)
    module = shortcut[0]
    assert isinstance(module, ViewedPadShortcut)
    module.keep_I[0], module.keep_O[3] = False, False  # outputs 1 to 3 are inputs 0 to 2
    assert torch.equal(shortcut(x)[:, 3], x[:, 2])  # masks are not read before they are announced
    module.refresh()
    want = torch.zeros(2, 5, 4, 4)
    want[:, 2] = x[:, 1]
    assert torch.equal(shortcut(x), want)
    with use_view(shortcut, View.TEACHER):
        assert torch.equal(shortcut(x)[:, 1:4], x)
    again = attach_views(nn.Sequential(PadShortcut(3, 5, 1)))
    again.load_state_dict(shortcut.state_dict())
    assert torch.equal(again(x), want)
    strip_views(again)
    assert type(again[0]) is PadShortcut
    assert again[0].source_O.tolist() == [-1, -1, 1, -1, -1]
    assert torch.equal(again(x), want)


def test_bias_and_norm_are_hidden_in_the_students_view_alone() -> None:
    network = attach_views(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))).eval()
    with torch.no_grad():
        for module in network:
            for name in ("weight", "bias"):
                latent_parameter(module, name).fill_(2.0)
    for module in network:
        for view in views_of(module):
            view.keep_O[1] = False
    x = torch.randn(2, 2, 4, 4)
    assert not network(x)[:, 1].any()
    assert network(x)[:, 0].any()
    with use_view(network, View.TEACHER):
        assert network(x)[:, 1].any()


def test_weights_that_are_computed_are_refused() -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 1)))
    with pytest.raises(StructureError, match="weight of '0' is computed from other tensors"):
        attach_views(network)


def test_baking_a_copy_leaves_the_original_alone(builtin: Any) -> None:
    network = attach_views(builtin.network)
    hide(network)
    want = network(builtin.images)
    stripped = strip_views(copy.deepcopy(network))
    assert torch.equal(stripped(builtin.images), want)
    assert torch.equal(network(builtin.images), want)
    with use_view(network, View.LATENT):
        assert not torch.equal(network(builtin.images), want)


def test_depthwise_and_transposed_convolutions_have_the_masks_of_their_kind() -> None:
    network = attach_views(
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 6, 2), nn.Linear(3, 2))
    )
    views = [weight_view(module) for module in network]
    assert [(v.out_dim, v.has_inputs, len(v.keep_O), len(v.keep_I)) for v in views if v] == [
        (0, False, 4, 1),
        (1, True, 6, 4),
        (0, True, 2, 3),
    ]


def test_bare_names_are_those_of_the_plain_network(builtin: Any) -> None:
    plain = set(builtin.network.state_dict())
    network = attach_views(builtin.network, elements=True)
    bare = bare_names(network.state_dict())
    assert plain <= set(bare)
    latent = latent_parameter(next(module for _, module in weighted(network)), "weight")
    assert bare[next(name for name, _ in weighted(network)) + ".weight"].data_ptr() == (
        latent.data_ptr()
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lsq", "minmax"])
def test_state_round_trip_of_everything_attached(builtin: Any, quantize: Any, kind: str) -> None:
    fresh = copy.deepcopy(builtin.network)
    for parameter in fresh.parameters():
        parameter.zero_()

    def attached(network: fx.GraphModule) -> fx.GraphModule:
        attach_views(network, elements=True)
        quantize(network, builtin.images, bits=4, kind=kind)
        attach_teacher_norms(network)
        return network

    network, fresh = attached(builtin.network), attached(fresh)
    hide(network)
    quantizers = list(network.get_submodule("quantizers").children())
    quantizers[len(quantizers) // 2].set_bypass(True)  # type: ignore[operator, union-attr]
    fresh.load_state_dict(network.state_dict())
    for view in View:
        with use_view(network, view), use_view(fresh, view):
            assert torch.equal(network(builtin.images), fresh(builtin.images))


def test_deep_copies_are_independent(resnet: Any, quantize: Any) -> None:
    network = quantize(resnet.network, resnet.images)
    hide(network)
    twin = copy.deepcopy(network)
    want: Tensor = network(resnet.images).detach()
    assert torch.equal(twin(resnet.images), want)
    hide(twin, 1.0)
    assert torch.equal(network(resnet.images), want)
    assert not torch.equal(twin(resnet.images), want)
