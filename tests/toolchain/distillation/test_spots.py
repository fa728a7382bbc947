"""Spots: the features are what modules compute, however the network is run, and nothing is left behind."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from deploy.errors import ConfigError
from toolchain import graph
from toolchain.distillation.spots import capture, match_spots, require_reached, shapes, spots_of
from toolchain.models import registry
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_views, weight_view
from toolchain.quantization.residual_kernels import QuantizedAdd, fused_adds
from toolchain.quantization.views import View, use_view

NETS = {
    "cifar_resnet": ({"depth": 14, "width": 4}, (3, 8, 8)),
    "vgg": ({"widths": [6, "M", 8]}, (3, 8, 8)),
    "mobilenet_v2": ({"multiplier": 0.25, "stages": [[2, 8, 3, 1]]}, (3, 8, 8)),
    "ds_cnn": ({"channels": 6, "blocks": 2}, (1, 20, 10)),
    "mlp": ({"hidden": [8, 6], "input_shape": [1, 4, 4]}, (1, 4, 4)),
    "vit": ({"image_size": 8, "width": 12, "depth": 2, "pool": "token"}, (3, 8, 8)),
}


def plain(name: str = "cifar_resnet") -> nn.Module:
    torch.manual_seed(0)
    return registry.build(name, **NETS[name][0]).eval()


def images(name: str = "cifar_resnet", count: int = 2) -> Tensor:
    return torch.randn(count, *NETS[name][1], generator=torch.Generator().manual_seed(1))


def quantized(name: str = "cifar_resnet") -> fx.GraphModule:
    network = graph.trace(plain(name))
    attach_quantizers(network, Quantization())
    calibrate(network, [images(name, 8)])
    return network


def network(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, channels, 3, padding=1),
            norm=nn.BatchNorm2d(channels),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(channels, 5),
        )
    )


# modules that are not traced


def test_features_are_what_the_modules_compute() -> None:
    net, x = network().eval(), torch.randn(2, 3, 6, 6)
    with capture(net, ["conv", "penultimate", "logits"]) as found:
        logits = net(x)
    assert torch.equal(found["conv"], net.conv(x))
    assert torch.equal(found["penultimate"], net[:4](x))
    assert found["logits"] is logits


@pytest.mark.parametrize("traced", [False, True])
def test_nothing_is_left_behind_even_after_an_error(traced: bool) -> None:
    net = graph.trace(network()) if traced else network()
    before, forward = set(vars(net)), net.forward
    with pytest.raises(RuntimeError), capture(net, ["conv", "penultimate", "logits"]):
        net(torch.randn(2, 9, 6, 6))
    assert set(vars(net)) == before
    assert net.forward == forward
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("traced", [False, True])
def test_an_unknown_path_names_the_nearest(traced: bool) -> None:
    net = graph.trace(network()) if traced else network()
    with pytest.raises(ConfigError, match="did you mean 'conv'") as error, capture(net, ["cnv"]):
        pass
    assert "list spots" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("traced", [False, True])
def test_penultimate_needs_a_linear_layer(traced: bool) -> None:
    net = nn.Sequential(nn.ReLU())
    with (
        pytest.raises(ConfigError, match="linear"),
        capture(graph.trace(net) if traced else net, ["penultimate"]),
    ):
        pass


def test_a_module_that_returns_no_tensor_is_refused() -> None:
    net = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(ConfigError, match="tuple"), capture(net, ["0"]):
        net(torch.randn(2, 5, 3))


class Recurrent(nn.Module):
    """A leaf that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


def test_a_traced_module_that_returns_no_tensor_is_refused_and_not_listed() -> None:
    net, x = graph.trace(Recurrent()), torch.randn(2, 5, 3)
    with pytest.raises(ConfigError, match="tuple"), capture(net, ["lstm"]):
        net(x)
    assert list(spots_of(net, x)) == ["penultimate", "head", "logits"]


def test_a_module_that_is_not_called_is_refused() -> None:
    net = network()
    net.conv.spare = nn.ReLU()
    with pytest.raises(ConfigError, match="not reached"):
        shapes(net, ["conv.spare"], torch.randn(1, 3, 6, 6))


@pytest.mark.parametrize("traced", [False, True])
def test_shapes_leaves_statistics_and_modes_alone(traced: bool) -> None:
    net = network().train()
    net = graph.trace(net) if traced else net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = shapes(net, ["conv", "logits"], torch.randn(2, 3, 6, 6))
    assert {k: tuple(v) for k, v in found.items()} == {"conv": (2, 4, 6, 6), "logits": (2, 5)}
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# traced networks


@given(st.data())
def test_a_traced_network_gives_what_hooks_on_the_model_give(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(NETS)))
    model = plain(name)
    traced = graph.trace(copy.deepcopy(model))
    known = list(spots_of(traced, images(name)))
    spots = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=6, unique=True))
    with torch.no_grad(), capture(traced, spots) as mine, capture(model, spots) as theirs:
        logits = traced(images(name))
        assert torch.equal(logits, model(images(name)))
    assert list(mine) == spots
    assert all(torch.equal(mine[spot], theirs[spot]) for spot in spots)


@pytest.mark.parametrize("name", NETS)
def test_every_module_that_hooks_see_is_listed_with_its_shape(name: str) -> None:
    model = plain(name)
    traced = graph.trace(copy.deepcopy(model))
    assert spots_of(traced, images(name)) == spots_of(model, images(name))


def test_spots_are_listed_in_the_order_of_execution() -> None:
    listed = list(spots_of(graph.trace(plain()), images()))
    assert listed[:4] == ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1"]
    assert listed.index("layer1.1.shortcut") < listed.index("layer1.1") < listed.index("layer1")
    assert listed[-3:] == ["penultimate", "linear", "logits"]


def test_one_pass_gives_everything() -> None:
    net = graph.trace(plain())
    calls: list[int] = []
    net.conv1.register_forward_hook(lambda *_: calls.append(1))
    with capture(net, ["layer1", "layer2.0", "penultimate", "logits"]):
        net(images())
    assert len(calls) == 1


def test_gradients_flow_through_what_is_captured() -> None:
    net = graph.trace(plain())
    with capture(net, ["layer1"]) as found:
        net(images())
    found["layer1"].sum().backward()
    assert net.conv1.weight.grad is not None
    assert net.linear.weight.grad is None


def test_contexts_nest() -> None:
    net = graph.trace(plain())
    with capture(net, ["layer1", "logits"]) as outer:
        with capture(net, ["layer2", "logits"]) as inner:
            first = net(images())
        assert set(outer) == {"layer1", "logits"}
        assert set(inner) == {"layer2", "logits"}
        second = net(images())
    assert inner["logits"] is first
    assert outer["logits"] is second
    net(images())
    assert outer["logits"] is second


def test_a_copy_that_is_made_meanwhile_is_not_watched() -> None:
    net = graph.trace(plain())
    with capture(net, ["logits"]) as found:
        other = copy.deepcopy(net)
        logits = other(images())
        assert "forward" not in vars(other)
        assert not found
        assert torch.equal(net(images()), logits)
    assert found


def test_a_graph_that_changed_is_tapped_anew() -> None:
    net = graph.trace(plain())
    with capture(net, ["layer1"]) as float_found:
        net(images())
    attach_quantizers(net, Quantization())
    calibrate(net, [images()])
    with capture(net, ["layer1"]) as found:
        net(images())
    assert not torch.equal(found["layer1"], float_found["layer1"])
    assert found["layer1"].unique().numel() <= 256


class Positioned(nn.Module):
    """Has a buffer of its own, which moves when the network does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position", torch.ones(4))
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.position)


def test_buffers_are_read_when_the_network_runs() -> None:
    net = graph.trace(Positioned())
    with capture(net, ["penultimate"]):
        net(torch.zeros(1, 4))
    net.double()
    net.position = 2 * net.position
    with capture(net, ["penultimate"]) as found:
        net(torch.zeros(1, 4).double())
    assert torch.equal(found["penultimate"], torch.full((1, 4), 2.0).double())


class InPlace(nn.Module):
    """Overwrites what its convolutions return, in every way there is."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.same = nn.Identity()
        self.relu = nn.ReLU(inplace=way == "module")
        self.head = nn.Linear(2, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.same(y)
        if self.way == "module":
            z = self.relu(z)
        elif self.way == "function":
            z = F.relu(z, inplace=True)
        elif self.way == "positional":
            z = F.relu(z, True)
        elif self.way == "method":
            z = z.relu_()
        elif self.way == "operator":
            z += 1
        elif self.way == "view":
            z.flatten(1).mul_(0.0)
        elif self.way == "out":
            z = torch.add(z, 1, out=z)
        return self.head(z.mean((2, 3)))


@pytest.mark.parametrize(
    "way", ["module", "function", "positional", "method", "operator", "view", "out"]
)
@pytest.mark.parametrize("spot", ["conv", "same"])
def test_what_is_overwritten_later_is_captured_as_it_was(way: str, spot: str) -> None:
    net, x = graph.trace(InPlace(way)), torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        want = net(x)
        with capture(net, [spot]) as found:
            assert torch.equal(net(x), want)
        assert torch.equal(found[spot], net.conv(x))
        assert not torch.equal(found[spot], found[spot].relu())


def test_what_is_not_overwritten_is_not_copied() -> None:
    net = graph.trace(plain())
    seen: list[Tensor] = []
    net.layer1.get_submodule("1").conv1.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with capture(net, ["layer1.0"]) as found:
        net(images())
    assert found["layer1.0"] is seen[0]


def test_hooks_copy_because_they_cannot_know() -> None:
    net, x = InPlace("module"), torch.randn(2, 1, 4, 4)
    with torch.no_grad(), capture(net, ["conv"]) as found:
        net(x)
    assert torch.equal(found["conv"], net.conv(x))


# quantized, masked and slim networks


def reads(net: fx.GraphModule, path: str, run: Tensor) -> Tensor:
    """The input of the module at ``path``."""
    seen: list[Tensor] = []
    handle = net.get_submodule(path).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    net(run)
    handle.remove()
    return seen[0]


READERS = {"layer1.0": "layer1.1.conv1", "layer1": "layer2.0.conv1", "layer2": "layer3.0.shortcut"}


@pytest.mark.parametrize("view", list(View))
def test_a_container_gives_what_the_next_block_reads(view: View) -> None:
    net = quantized()
    with use_view(net, view), torch.no_grad():
        with capture(net, list(READERS)) as found:
            net(images())
        for spot, reader in READERS.items():
            assert torch.equal(found[spot], reads(net, reader, images())), spot
    on_grid = found["layer1"].unique().numel() <= 256
    assert on_grid == (view is View.STUDENT)


def test_masks_are_seen_by_the_student_alone() -> None:
    net = graph.trace(plain())
    attach_views(net)
    view = weight_view(net.get_submodule("layer1.0.conv1"))
    assert view is not None
    view.keep_O[0] = False
    with torch.no_grad(), capture(net, ["layer1.0.conv1"]) as found:
        net(images())
        student = found["layer1.0.conv1"]
        with use_view(net, View.LATENT):
            net(images())
    assert student[:, 0].abs().max() == 0
    assert found["layer1.0.conv1"][:, 0].abs().max() > 0


@pytest.mark.parametrize("name", ["cifar_resnet", "mobilenet_v2"])
def test_inside_fused_adds_features_are_the_same(name: str) -> None:
    net = quantized(name)
    spots = [spot for spot in spots_of(net, images(name)) if spot.count(".") < 3]
    with torch.no_grad():
        with capture(net, spots) as apart:
            want = net(images(name))
        with fused_adds(net), capture(net, spots) as together:
            assert torch.equal(net(images(name)), want)
        with capture(net, spots) as entered_later, fused_adds(net):
            net(images(name))
    assert list(apart) == list(together) == spots
    for spot in spots:
        assert torch.equal(apart[spot], together[spot]), spot
        assert torch.equal(apart[spot], entered_later[spot]), spot


def test_an_add_that_is_not_watched_stays_fused() -> None:
    net = quantized()
    with fused_adds(net):
        used: list[nn.Module] = []
        with capture(net, ["layer1", "logits"]):
            for module in net.modules():
                if isinstance(module, QuantizedAdd):
                    module.register_forward_hook(lambda module, *_: used.append(module))
            net(images())
    assert len(used) == 6


def test_an_activation_whose_place_a_quantizer_took_is_that_quantizer() -> None:
    net = quantized("vgg")
    with torch.no_grad(), capture(net, ["features.2", "features.1", "features"]) as found:
        net(images("vgg"))
    assert torch.equal(found["features.2"], net.quantizers.features_2(found["features.1"]))
    assert not [path for path in match_spots(net, "*") if path.startswith("quantizers")]


def test_of_a_removed_branch_nothing_can_be_captured() -> None:
    net = graph.trace(plain("mobilenet_v2"))
    adds = [node.name for node in net.graph.nodes if graph.is_add(net, node)]
    graph.remove_branches(net, {adds[1]: 0})
    with pytest.raises(ConfigError, match=r"'blocks\.1' .* nothing of it remains"):
        match_spots(net, "blocks.1")
    assert match_spots(net, "blocks.*") == ("blocks.0", "blocks.2")


def test_a_block_of_which_the_shortcut_remains_is_that_shortcut() -> None:
    net = graph.trace(plain())
    adds = [node.name for node in net.graph.nodes if graph.is_add(net, node)]
    graph.remove_branches(net, {adds[1]: 1})
    with torch.no_grad(), capture(net, ["layer1.0", "layer1.1", "layer1"]) as found:
        net(images())
    assert torch.equal(found["layer1.1"], found["layer1.0"])
    assert torch.equal(found["layer1"], found["layer1.0"])


class Twice(nn.Module):
    """One block, called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def test_of_a_module_that_is_called_twice_the_last_call_counts() -> None:
    model, x = Twice(), torch.randn(2, 3)
    net = graph.trace(copy.deepcopy(model))
    with capture(net, ["block", "block.0"]) as found, capture(model, ["block"]) as hooked:
        want = model(x)
        net(x)
    assert torch.equal(found["block"], want)
    assert torch.equal(found["block"], hooked["block"])
    assert torch.equal(found["block.0"], model.block[0](model.block(x)))


class Pair(nn.Module):
    """A block with two values."""

    def __init__(self) -> None:
        super().__init__()
        self.two = Two()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.two(x)
        return a * b


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


def test_a_container_with_two_values_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="'two' gives 2 values"),
        capture(graph.trace(Pair()), ["two"]),
    ):
        pass


# patterns


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer*", ("layer1", "layer2", "layer3")),
        ("layer?.0", ("layer1.0", "layer2.0", "layer3.0")),
        ("layer3.*", ("layer3.0", "layer3.1")),
        ("layer[23]", ("layer2", "layer3")),
        ("layer1.*.conv1", ("layer1.0.conv1", "layer1.1.conv1")),
        ("layer2.1.bn2", ("layer2.1.bn2",)),
        ("logits", ("logits",)),
        ("penultimate", ("penultimate",)),
    ],
)
def test_a_pattern_names_spots_in_order(
    traced: bool, pattern: str, expected: tuple[str, ...]
) -> None:
    net = graph.trace(plain()) if traced else plain()
    assert match_spots(net, pattern) == expected


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("pattern", "nearest"), [("layr*", "layer"), ("layer1.conv1", "layer1"), ("stage*.0", "layer")]
)
def test_what_matches_nothing_names_the_nearest(traced: bool, pattern: str, nearest: str) -> None:
    net = graph.trace(plain()) if traced else plain()
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}") as error:
        match_spots(net, pattern)
    assert "\n" not in str(error.value)


@given(st.data())
def test_a_glob_never_crosses_a_dot_and_a_path_names_itself(data: st.DataObject) -> None:
    net = graph.trace(plain())
    known = [path for path in spots_of(net, images()) if path not in ("logits", "penultimate")]
    path = data.draw(st.sampled_from(known))
    assert match_spots(net, path) == (path,)
    parts = path.split(".")
    which = data.draw(st.integers(0, len(parts) - 1))
    found = match_spots(net, ".".join([*parts[:which], "*", *parts[which + 1 :]]))
    assert path in found
    assert all(other.count(".") == path.count(".") for other in found)
    assert list(found) == [other for other in known if other in found]


def test_spots_of_which_nothing_came_are_refused() -> None:
    with pytest.raises(ConfigError, match="'b' is not reached"):
        require_reached({"a": torch.zeros(1)}, ["a", "b"])
