"""Slices: pieces one after the other are the network, bit for bit, in whatever state it is."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from deploy.errors import ConfigError
from toolchain import graph
from toolchain.distillation.slices import slice_network
from toolchain.distillation.spots import capture, spots_of
from toolchain.models import registry
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_teacher_norms, weight_view
from toolchain.quantization.residual_kernels import fused_adds
from toolchain.quantization.views import View, use_view

NETS = {
    "cifar_resnet": ({"depth": 14, "width": 4}, (3, 8, 8)),
    "vgg": ({"widths": [6, "M", 8]}, (3, 8, 8)),
    "mobilenet_v2": ({"multiplier": 0.25, "stages": [[2, 8, 3, 1]]}, (3, 8, 8)),
    "ds_cnn": ({"channels": 6, "blocks": 2}, (1, 20, 10)),
    "vit": ({"image_size": 8, "width": 12, "depth": 2, "pool": "token"}, (3, 8, 8)),
}
FLOAT, QUANTIZED = "float", "quantized"


def network(name: str = "cifar_resnet", state: str = FLOAT) -> fx.GraphModule:
    torch.manual_seed(0)
    made = graph.trace(registry.build(name, **NETS[name][0])).eval()
    if state == QUANTIZED:
        attach_quantizers(made, Quantization())
        calibrate(made, [images(name)])
    return made


def images(name: str = "cifar_resnet") -> Tensor:
    return torch.randn(2, *NETS[name][1], generator=torch.Generator().manual_seed(1))


MADE = {
    (name, state): network(name, state)
    for name in NETS
    for state in (FLOAT, QUANTIZED)
    if (name, state) != ("vit", QUANTIZED)
}


def cuts(net: fx.GraphModule, x: Tensor) -> list[str]:
    """All spots at which the network can be cut."""
    found = []
    for spot in spots_of(net, x):
        try:
            slice_network(net, [spot])
        except ConfigError:
            continue
        found.append(spot)
    return found


CUTS = {key: cuts(net, images(key[0])) for key, net in MADE.items()}


@given(st.data())
def test_pieces_in_a_row_are_the_network(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(list(MADE)))
    net, x = MADE[key], images(key[0])
    where = data.draw(st.lists(st.sampled_from(CUTS[key]), max_size=5, unique=True))
    spots = sorted(where, key=CUTS[key].index)
    slices = slice_network(net, spots)
    stops = sorted(data.draw(st.sets(st.integers(0, len(slices)))) | {0, len(slices)})
    with torch.no_grad():
        with capture(net, [*spots, "logits"]) as found:
            net(x)
        values = x
        for begin, end in itertools.pairwise(stops):
            values = slices.run(values, begin, end)
            assert torch.equal(values, found[[*spots, "logits"][end - 1]])


@pytest.mark.parametrize(("name", "state"), list(MADE))
def test_the_ends_of_blocks_are_cuts(name: str, state: str) -> None:
    blocks = {
        "cifar_resnet": ["layer1.0", "layer1.1", "layer1", "layer2", "layer3"],
        "vgg": ["features.2", "features.3", "features"],
        "mobilenet_v2": ["stem", "blocks.0", "blocks.1", "blocks", "head"],
        "ds_cnn": ["blocks.0", "blocks.1", "blocks"],
        "vit": ["blocks.0", "blocks.1", "blocks", "norm"],
    }
    assert {*blocks[name], "penultimate", "logits"} <= set(CUTS[name, state])


def test_a_cut_that_a_value_goes_round_names_the_value() -> None:
    with pytest.raises(ConfigError) as error:
        slice_network(network(), ["layer2.1.conv1"])
    assert "'layer2.1.conv1', because the value of 'layer2.0' goes round it" in str(error.value)
    assert "layer2.1.conv1" not in CUTS["cifar_resnet", FLOAT]
    assert "\n" not in str(error.value)


def test_the_input_can_go_round_too() -> None:
    with pytest.raises(ConfigError, match="value of 'x' goes round"):
        slice_network(graph.trace(Around()), ["conv"])


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x


@pytest.mark.parametrize("spots", [["layer2", "layer1"], ["layer1", "layer1"]])
def test_spots_in_another_order_are_refused(spots: list[str]) -> None:
    with pytest.raises(ConfigError, match="order of execution"):
        slice_network(network(), spots)


def test_an_unknown_spot_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'layer1'"):
        slice_network(network(), ["layr1"])


@pytest.mark.parametrize(("begin", "end"), [(-1, 1), (1, 0), (0, 4)])
def test_pieces_that_do_not_exist_are_refused(begin: int, end: int) -> None:
    with pytest.raises(IndexError):
        slice_network(network(), ["layer1", "layer2"]).run(images(), begin, end)


def test_no_piece_is_what_came_in() -> None:
    x = images()
    assert slice_network(network(), ["layer1"]).run(x, 1, 1) is x


@pytest.mark.parametrize("view", list(View))
def test_pieces_follow_the_view(view: View) -> None:
    net = network(state=QUANTIZED)
    attach_teacher_norms(net)
    mask = weight_view(net.get_submodule("layer2.0.conv1"))
    assert mask is not None
    mask.keep_O[:3] = False
    slices = slice_network(net, ["layer1", "layer2"])
    with torch.no_grad():
        student = net(images())
        with use_view(net, view):
            got, want = slices.run(images(), 0, 3), net(images())
    assert torch.equal(got, want)
    assert torch.equal(got, student) == (view is View.STUDENT)


def test_pieces_follow_the_mode_and_move_the_same_statistics() -> None:
    net = network().train()
    other = copy.deepcopy(net)
    got = slice_network(net, ["layer1.0", "layer3"]).run(images(), 0, 3)
    assert torch.equal(got, other(images()))
    mine, theirs = net.state_dict(), other.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert not torch.equal(mine["bn1.running_mean"], torch.zeros(4))


def test_gradients_reach_the_shared_weights_and_the_values() -> None:
    net, x = network(), images().requires_grad_()
    other = copy.deepcopy(net)
    slice_network(net, ["layer1", "layer2"]).run(x, 0, 3).square().sum().backward()
    other(images()).square().sum().backward()
    assert x.grad is not None
    for (name, mine), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_inside_fused_adds_the_pieces_are_fused_too() -> None:
    net = network(state=QUANTIZED)
    slices = slice_network(net, ["layer1.0", "layer2"])
    with torch.no_grad():
        want = net(images())
        assert torch.equal(slices.run(images(), 0, 3), want)
        with fused_adds(net):
            used: list[int] = []
            slices.run(images(), 0, 3)
            for module in net.get_submodule("quantized_adds").children():
                module.register_forward_hook(lambda *_: used.append(1))
            assert torch.equal(slices.run(images(), 0, 3), want)
            assert len(used) == 6
            assert torch.equal(slice_network(net, ["layer1"]).run(images(), 0, 2), want)
        assert torch.equal(slices.run(images(), 0, 3), want)


def test_pieces_follow_a_graph_that_changes() -> None:
    net = network()
    slices = slice_network(net, ["layer1"])
    slices.run(images(), 0, 2)
    attach_quantizers(net, Quantization())
    calibrate(net, [images()])
    with torch.no_grad():
        assert torch.equal(slices.run(images(), 0, 2), net(images()))


class InPlace(nn.Module):
    """Its activation overwrites what the convolution returned; the scale is no function of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.scale = nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.exp()
        y = F.relu(self.conv(x * scale), inplace=True)
        return (y * scale).mean((2, 3))


def test_what_comes_in_is_not_overwritten_and_constants_are_made_where_they_are_read() -> None:
    net, x = graph.trace(InPlace()), torch.randn(2, 3, 4, 4)
    slices = slice_network(net, ["conv"])
    with torch.no_grad():
        values = slices.run(x, 0, 1)
        before = values.clone()
        assert torch.equal(slices.run(values, 1, 2), net(x))
        assert torch.equal(values, before)
        assert values.min() < 0
