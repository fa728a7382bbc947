"""Groups are right when the cut network computes what the masked one computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import ConfigError, StructureError
from toolchain.graph import trace
from toolchain.models import registry
from toolchain.models.shortcut import PadShortcut
from toolchain.structure.groups import OUTPUT, find_groups
from toolchain.structure.plan import Group
from toolchain.structure.slim import cut, plan_of

NETS = {
    "resnet-pad": (lambda: registry.build("cifar_resnet", depth=8, width=4), (3, 16, 16)),
    "resnet-conv": (
        lambda: registry.build("cifar_resnet", depth=8, width=4, shortcut="conv"),
        (3, 16, 16),
    ),
    "concat": (lambda: Concat(), (3, 8, 8)),
    "flatten": (lambda: Flat(), (3, 8, 8)),
    "mixed": (lambda: Mixed(), (3, 8, 8)),
    "transposed": (lambda: Transposed(), (3, 8, 8)),
    "one-d": (lambda: OneD(), (2, 12)),
}


class Concat(nn.Module):
    """Two producers meet in a batch norm, a convolution and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.c = nn.Conv2d(10, 10, 3, padding=1)
        self.d = nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        x = F.relu(self.d(x + self.c(x)))
        return self.fc(x.mean((2, 3)))


class Flat(nn.Module):
    """Sixteen inputs of the linear layer belong to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.hidden = nn.Linear(6 * 16, 7)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.hidden(torch.flatten(F.relu(self.conv(x)), 1))))


class Mixed(nn.Module):
    """Depthwise, grouped, group norm and a parameter of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.out = nn.Conv2d(8, 8, 1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.last = nn.Conv2d(8, 6, 1)
        self.gain = nn.Parameter(torch.ones(1, 6, 1, 1))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.depthwise(F.relu6(self.stem(x)))))
        x = self.grouped(F.relu(self.point(x)))
        x = self.group_norm(self.out(F.relu(x)))
        return self.fc((self.last(F.relu(x)) * self.gain).mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.down(x)))))


class OneD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean(2))


class UserPad(nn.Module):
    """A residual network whose author wrote the shortcut as a slice and a pad in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.conv2(F.relu(self.norm1(self.conv1(x))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(torch.flatten(F.avg_pool2d(x, 4), 1))


def mask(network: nn.Module, groups: list[Group], kept: dict[str, tuple[int, ...]]) -> None:
    """Zero what ``kept`` leaves out: rows, norm parameters and columns. Independent of the slicing."""
    with torch.no_grad():
        for group in groups:
            gone = set(range(group.channels)) - set(kept.get(group.name, range(group.channels)))
            for part in group.slices:
                module = network.get_submodule(part.module)
                for position in (p for channel in gone for p in part.index[channel]):
                    if isinstance(module, PadShortcut):
                        source_O = module.source_O.clone()
                        source_O[position if part.axis == "out" else source_O == position] = -1
                        module.source_O = source_O
                        continue
                    weight, bias = module.weight, module.bias
                    rows_first = not isinstance(module, nn.ConvTranspose2d)
                    if (part.axis == "out") == rows_first:
                        weight[position] = 0
                    else:
                        weight[:, position] = 0
                    if part.axis == "out" and bias is not None:
                        bias[position] = 0


def ready(build: object) -> nn.Module:
    """A network in float64 whose batch norms have statistics that are not trivial."""
    torch.manual_seed(0)
    network = build()  # type: ignore[operator]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.double().eval()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_slim_equals_masked(name: str, sparsity: float) -> None:
    build, shape = NETS[name]
    network = trace(ready(build))
    groups = find_groups(network, shape)
    cuttable = [group for group in groups if group.reason is None]
    assert cuttable
    generator = torch.Generator().manual_seed(1)
    kept = {}
    for group in cuttable:
        count = max(1, round(group.channels * (1 - sparsity)))
        order = torch.randperm(group.channels, generator=generator).tolist()
        kept[group.name] = tuple(sorted(order[:count]))
    slim = cut(network, plan_of(network, groups, kept))
    mask(network, groups, kept)
    x = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        difference = (slim(x) - network(x)).abs().max()
    assert difference < 1e-12
    if sparsity >= 0.3:
        assert sum(p.numel() for p in slim.parameters()) < sum(
            p.numel() for p in network.parameters()
        )


def test_each_position_is_in_one_group() -> None:
    for build, shape in NETS.values():
        seen: set[tuple[str, str, int]] = set()
        for group in find_groups(build(), shape):
            for part in group.slices:
                assert len(part.index) == group.channels
                for positions in part.index:
                    for position in positions:
                        assert (part.module, part.axis, position) not in seen
                        seen.add((part.module, part.axis, position))


def test_flatten_gives_a_channel_all_its_positions() -> None:
    groups = {group.name: group for group in find_groups(Flat(), (3, 8, 8))}
    hidden = next(part for part in groups["conv"].slices if part.module == "hidden")
    assert hidden.axis == "in"
    assert hidden.index[2] == tuple(range(32, 48))


def test_concat_gives_each_producer_its_range() -> None:
    groups = {group.name: group for group in find_groups(Concat(), (3, 8, 8))}
    assert groups["a"].channels == 4 and groups["b"].channels == 6
    norm = next(part for part in groups["b"].slices if part.module == "norm")
    assert norm.index == tuple((position,) for position in range(4, 10))


def test_pad_shortcut_separates_the_streams() -> None:
    network = registry.build("cifar_resnet", depth=8, width=4)
    groups = {group.name: group for group in find_groups(network, (3, 16, 16))}
    streams = [groups[name].channels for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")]
    assert streams == [4, 8, 16]
    assert all(group.reason is None for group in groups.values() if group.name != "linear")


def test_output_is_never_cut() -> None:
    for build, shape in NETS.values():
        reasons = [group.reason for group in find_groups(build(), shape, trial=False)]
        assert reasons.count(OUTPUT) == 1


def test_what_cannot_be_cut_says_why() -> None:
    groups = {group.name: group for group in find_groups(Mixed(), (3, 8, 8))}
    assert groups["stem"].reason is None
    assert "groups=2" in str(groups["point"].reason)
    assert "groups=2" in str(groups["grouped"].reason)
    assert "GroupNorm" in str(groups["out"].reason)
    assert "gain" in str(groups["last"].reason)


def test_users_slice_and_pad_is_cut_inside_the_block() -> None:
    groups = find_groups(UserPad(), (3, 8, 8))
    reasons = {group.name: group.reason for group in groups}
    assert reasons["conv1"] is None
    assert "PadShortcut" in str(reasons["stem"])
    for group in groups:
        touched = {part.module for part in group.slices if part.axis == "out"}
        assert group.reason is not None or not touched & {"stem", "conv2", "fc"}


class Shuffled(nn.Module):
    """Halves of the channels change places: no library's index mapping is to be believed here."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.two = nn.Conv2d(8, 4, 1)
        self.three = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(F.relu(self.two(torch.roll(F.relu(self.one(x)), 1, 1))))


def test_a_wrong_mapping_is_found_by_trial() -> None:
    believed = {group.name: group for group in find_groups(Shuffled(), (3, 4, 4), trial=False)}
    tried = {group.name: group for group in find_groups(Shuffled(), (3, 4, 4))}
    assert believed["one"].reason is None
    assert "differ" in str(tried["one"].reason)
    assert tried["two"].reason is None


def test_input_added_to_channels_is_found_by_trial() -> None:
    class AddsInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(4, 4, 1)
            self.two = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x + self.one(x))

    groups = {group.name: group for group in find_groups(AddsInput(), (4, 4, 4))}
    assert "fails once it is cut" in str(groups["one"].reason)


def test_network_that_the_library_cannot_follow_is_cut_in_chains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch_pruning

    def crash(*args: object, **kwargs: object) -> None:
        raise RuntimeError("recursion")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", crash)
    groups = {group.name: group for group in find_groups(UserPad(), (3, 8, 8))}
    assert groups["conv1"].reason is None
    assert {(part.module, part.axis) for part in groups["conv1"].slices} == {
        ("conv1", "out"),
        ("norm1", "out"),
        ("conv2", "in"),
    }
    assert "recursion" in str(groups["stem"].reason)
    assert "network output" in str(groups["fc"].reason)


@pytest.mark.parametrize(
    ("pattern", "spared"),
    [
        ("layer2.0.conv1", {"layer2.0.conv1"}),
        ("layer3", {"layer3.0.conv1", "layer3.0.conv2"}),
        ("layer[12].*.conv1", {"layer1.0.conv1", "layer2.0.conv1"}),
        ("linear", set()),
    ],
)
def test_ignore_keeps_output_channels(pattern: str, spared: set[str]) -> None:
    network = registry.build("cifar_resnet", depth=8, width=4)
    groups = find_groups(network, (3, 16, 16), [pattern])
    ignored = {group.name for group in groups if "ignored" in str(group.reason)}
    assert ignored == spared


def test_ignore_by_type() -> None:
    network = registry.build("cifar_resnet", depth=8, width=4)
    assert all(group.reason for group in find_groups(network, (3, 16, 16), ["conv2d"]))
    groups = {group.name: group for group in find_groups(Mixed(), (3, 8, 8), ["DepthwiseConv"])}
    assert groups["stem"].reason == "depthwise is ignored by 'DepthwiseConv'"


def test_ignore_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'layr3'.*nearest is 'layer3'"):
        find_groups(registry.build("cifar_resnet", depth=8, width=4), (3, 16, 16), ["layr3"])


def test_wrong_input_shape_is_told() -> None:
    with pytest.raises(StructureError, match="does not run"):
        find_groups(Flat(), (3, 9, 9))


def test_the_network_is_left_as_it_was() -> None:
    network = registry.build("cifar_resnet", depth=8, width=4).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    find_groups(network, (3, 16, 16))
    assert network.training and all(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_cut_network_can_be_cut_again() -> None:
    network = trace(ready(NETS["resnet-pad"][0]))
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    first = {"conv1": (1, 3), "layer2.0.conv2": (0, 2, 3, 7), "layer3.0.conv1": (5,)}
    network = cut(network, plan_of(network, find_groups(network, (3, 16, 16)), first))
    groups = find_groups(network, (3, 16, 16))
    assert [group.name for group in groups if group.reason] == ["layer3.0.conv1", "linear"]
    second = {"conv1": (1,), "layer2.0.conv2": (1, 2, 3), "layer3.0.conv2": tuple(range(0, 16, 2))}
    slim = cut(network, plan_of(network, groups, second))
    mask(network, groups, second)
    with torch.no_grad():
        assert (slim(x) - network(x)).abs().max() < 1e-12
