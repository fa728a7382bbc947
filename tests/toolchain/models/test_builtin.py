"""What holds for every built-in network: shapes, tracing, and clear words for wrong arguments."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from deploy.errors import ConfigError
from toolchain.models import mobilenet
from toolchain.models.registry import build

TINY: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
    ("cifar_resnet", {"depth": 8, "width": 4}, (3, 8, 8)),
    ("cifar_resnet", {"depth": 14, "width": 4, "shortcut": "conv"}, (3, 8, 8)),
    ("vgg", {"widths": [8, "M", 4, 4, "M"]}, (3, 8, 8)),
    ("vgg", {"depth": 11}, (3, 32, 32)),
    ("mobilenet_v2", {"stages": [[1, 8, 1, 1], [2, 8, 2, 2]], "multiplier": 0.5}, (3, 8, 8)),
    ("ds_cnn", {"channels": 4, "blocks": 2, "in_channels": 1}, (1, 49, 10)),
    ("ds_cnn", {"size": "m", "channels": 4, "in_channels": 1}, (1, 49, 10)),
    ("mlp", {"input_shape": [3, 8, 8], "hidden": [8]}, (3, 8, 8)),
    ("mlp", {"input_shape": [1, 4, 4], "hidden": []}, (1, 4, 4)),
    ("vit", {"image_size": 8, "patch": 2, "width": 8, "depth": 2, "heads": 2}, (3, 8, 8)),
    ("vit", {"image_size": 8, "patch": 8, "width": 8, "depth": 1, "heads": 1}, (3, 8, 8)),
    ("vit", {"image_size": 4, "patch": 2, "width": 6, "depth": 1, "pool": "token"}, (3, 4, 4)),
    ("mixer", {"image_size": 8, "patch": 4, "width": 8, "depth": 2, "token_hidden": 3}, (3, 8, 8)),
]


@pytest.mark.parametrize(("name", "args", "shape"), TINY)
@pytest.mark.parametrize("classes", [1, 7])
def test_logits_have_one_column_per_class(
    name: str, args: dict[str, Any], shape: tuple[int, int, int], classes: int
) -> None:
    logits_BC = build(name, **args, classes=classes).eval()(torch.rand(2, *shape))
    assert logits_BC.shape == (2, classes)
    assert torch.isfinite(logits_BC).all()


@pytest.mark.parametrize(("name", "args", "shape"), TINY)
def test_traced_graph_computes_the_same(
    name: str, args: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    network = build(name, **args, classes=5).eval()
    x = torch.rand(3, *shape)
    assert torch.equal(fx.symbolic_trace(network)(x), network(x))


@pytest.mark.parametrize("name", ["cifar_resnet", "vgg", "mobilenet_v2", "ds_cnn", "vit", "mixer"])
def test_input_channels_reach_the_first_convolution(name: str) -> None:
    first = next(p for p in build(name, in_channels=2).parameters() if p.dim() == 4)
    assert first.shape[1] == 2


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 6))
def test_resnet_depth_counts_weighted_layers(n: int) -> None:
    network = build("cifar_resnet", depth=6 * n + 2, width=2)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 6 * n + 2


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_resnet_sizes_are_those_of_the_paper(depth: int, parameters: int) -> None:
    # Table 6 of He et al. 2015 gives 0.27, 0.46 and 0.85 million.
    network = build("cifar_resnet", depth=depth)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_resnet_keys_are_those_of_published_checkpoints() -> None:
    keys = set(build("cifar_resnet", depth=8).state_dict())
    norms = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{n}" for n in norms}
    for layer in ("layer1.0", "layer2.0", "layer3.0"):
        expected |= {f"{layer}.conv{i}.weight" for i in (1, 2)}
        expected |= {f"{layer}.bn{i}.{n}" for i in (1, 2) for n in norms}
    assert keys == expected


def test_ds_cnn_downsamples_as_the_paper_says() -> None:
    network = build("ds_cnn", channels=2, blocks=1).eval()
    assert network.conv(torch.zeros(1, 1, 49, 10)).shape == (1, 2, 25, 5)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("cifar_resnet", {"depth": 21}, "args.depth: 21 given; accepted: 6n [+] 2"),
        ("cifar_resnet", {"depth": 2}, "args.depth: 2 given"),
        ("cifar_resnet", {"depth": "20"}, "args.depth: '20' given; accepted: a whole number"),
        ("cifar_resnet", {"classes": 0}, "args.classes: 0 given"),
        ("cifar_resnet", {"classes": True}, "args.classes: True given"),
        ("cifar_resnet", {"shortcut": "zip"}, "args.shortcut: 'zip' given; accepted: pad, conv"),
        ("vgg", {"depth": 12}, "args.depth: 12 given; accepted: 11, 13, 16, 19"),
        ("vgg", {"widths": ["M"]}, "args.widths"),
        ("vgg", {"widths": [8, "P"]}, "args.widths: 'P' given"),
        ("mobilenet_v2", {"multiplier": 0}, "args.multiplier: 0 given"),
        ("mobilenet_v2", {"stages": []}, "args.stages"),
        ("mobilenet_v2", {"stages": [[1, 2, 3]]}, "args.stages.*accepted: 4 whole numbers"),
        ("ds_cnn", {"size": "xl"}, "args.size: 'xl' given; accepted: s, m, l"),
        ("mlp", {"hidden": "8"}, "args.hidden: '8' given; accepted: a list"),
        ("mlp", {"input_shape": [1, -8, 8]}, "args.input_shape: -8 given"),
        ("vit", {"patch": 5}, "args.patch: 5 given for images of 32 x 32; accepted: a divisor"),
        ("vit", {"patch": 0}, "args.patch: 0 given"),
        ("vit", {"heads": 5}, "args.heads: 5 given for width 96; accepted: a divisor of width"),
        ("vit", {"pool": "max"}, "args.pool: 'max' given; accepted: mean, token"),
        ("vit", {"mlp_ratio": 0.5}, "args.mlp_ratio: 0.5 given; accepted: a whole number"),
        ("mixer", {"image_size": 30}, "args.patch: 4 given for images of 30 x 30"),
        ("mixer", {"token_hidden": 0}, "args.token_hidden: 0 given"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(
    name: str, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(name, **args)
    assert "\n" not in str(caught.value)


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(mobilenet)
    assert attempted and not failed
