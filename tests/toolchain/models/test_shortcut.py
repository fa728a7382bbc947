"""The pad shortcut is the original slice and pad, and stays right when channels are rewired."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import StructureError
from toolchain.models import shortcut as module
from toolchain.models.shortcut import PadShortcut


@pytest.mark.parametrize(("channels", "stride"), [(2, 1), (4, 2), (16, 2), (6, 3)])
def test_is_the_original_slice_and_pad(channels: int, stride: int) -> None:
    x = torch.rand(2, channels, 7, 8)
    quarter = 2 * channels // 4
    expected = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, quarter, quarter))
    assert torch.equal(PadShortcut(channels, 2 * channels, stride)(x), expected)


@settings(max_examples=60, deadline=None)
@given(
    in_channels=st.integers(1, 5),
    data=st.data(),
    stride=st.integers(1, 3),
    size=st.integers(1, 6),
)
def test_any_sources_equal_a_channel_by_channel_copy(
    in_channels: int, data: st.DataObject, stride: int, size: int
) -> None:
    sources = data.draw(st.lists(st.integers(-1, in_channels - 1), min_size=1, max_size=8))
    shortcut = PadShortcut(in_channels, in_channels, stride)
    shortcut.source_O = torch.tensor(sources)
    x = torch.rand(2, in_channels, size, size)
    small = x[:, :, ::stride, ::stride]
    expected = torch.stack(
        [torch.zeros_like(small[:, 0]) if s < 0 else small[:, s] for s in sources], dim=1
    )
    assert torch.equal(shortcut(x), expected)
    assert shortcut.out_channels == len(sources)


@pytest.mark.parametrize("sources", [[-1, 0, 1, -1], [1, 0], [-1, -1], [2, 3, -1], [0, -1, 2]])
def test_gradients_reach_exactly_the_sources(sources: list[int]) -> None:
    shortcut = PadShortcut(4, 4, 2)
    shortcut.source_O = torch.tensor(sources)
    x = torch.rand(1, 4, 4, 4, requires_grad=True)
    shortcut(x).sum().backward()
    assert x.grad is not None
    assert [float(g) for g in x.grad[0, :, 0, 0]] == [float(sources.count(c)) for c in range(4)]
    assert float(x.grad[0, :, 1::2].abs().sum()) == 0


def test_sources_survive_a_copy_and_are_not_in_the_state() -> None:
    shortcut = PadShortcut(2, 4, 2)
    shortcut.source_O = torch.tensor([1, -1, 0])
    x = torch.rand(1, 2, 4, 4)
    assert torch.equal(copy.deepcopy(shortcut).double()(x.double()), shortcut(x).double())
    assert not shortcut.state_dict()


def test_fewer_outputs_than_inputs_are_refused() -> None:
    with pytest.raises(StructureError, match="4 to 2 channels"):
        PadShortcut(4, 2, 1)


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
