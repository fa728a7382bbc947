"""Precision: what is chosen, what is obeyed, and that convolutions really run in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.training.precision import choose_precision

BF16 = frozenset({"avx512_bf16"})
PLAIN = frozenset({"avx2"})


def test_auto_takes_bf16_where_the_cpu_has_instructions() -> None:
    able = choose_precision("auto", "cpu", cpu_flags=BF16)
    unable = choose_precision("auto", "cpu", cpu_flags=PLAIN)
    assert (able.name, unable.name) == ("bf16", "float32")
    assert "avx512_bf16" in str(able)
    assert "channels-last" in str(able)


def test_explicit_values_are_obeyed_and_a_bad_choice_is_said() -> None:
    assert choose_precision("float32", "cpu", cpu_flags=BF16).name == "float32"
    slow = choose_precision("bf16", "cpu", cpu_flags=PLAIN)
    assert slow.name == "bf16"
    assert "no bf16 instructions" in slow.reason
    assert "no bf16" not in choose_precision("bf16", "cpu", cpu_flags=BF16).reason


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"'cpu'"):
        choose_precision("auto", device)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="bf16"):
        choose_precision("fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_convolutions_run_in_the_format_and_layout_chosen(name: str, dtype: torch.dtype) -> None:
    precision = choose_precision(name, "cpu")  # type: ignore[arg-type]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    precision.place(network)
    seen: list[Tensor] = []
    for module in (network[0], network[3]):
        module.register_forward_hook(lambda m, i, o: seen.append(o))
    with precision.autocast():
        network(precision.images(torch.randn(2, 3, 8, 8)))
    assert [x.dtype for x in seen] == [dtype, dtype]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[0].weight.dtype == torch.float32


def test_a_teacher_pass_in_the_same_autocast_leaves_the_student_its_gradient() -> None:
    precision = choose_precision("bf16", "cpu")
    network = nn.Linear(4, 4)
    with precision.autocast():
        with torch.no_grad():
            network(torch.ones(1, 4))
        network(torch.ones(1, 4)).sum().backward()
    assert network.weight.grad is not None


def test_flat_inputs_keep_their_layout() -> None:
    precision = choose_precision("float32", "cpu")
    x = torch.randn(3, 5)
    assert torch.equal(precision.images(x), x)
