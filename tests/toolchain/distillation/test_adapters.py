"""Adapters give exactly the teacher's shape, learn only where channels or sizes ask for it, or say no."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.adapters import MapNorm, grid_side, has_class_token, join, resample

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
widths = st.integers(1, 5)
maps = st.builds(lambda c, size: (c, *size), widths, sizes)
tokens = st.builds(
    lambda side, has_class, c: (side**2 + has_class, c), st.integers(1, 5), st.booleans(), widths
)
vectors = st.tuples(widths)


def joined(own: tuple[int, ...], theirs: tuple[int, ...], match: str = "shape") -> nn.Module | None:
    return join(torch.Size((2, *own)), torch.Size((2, *theirs)), match, "x")


@given(maps | tokens | vectors, maps | tokens | vectors)
def test_the_shape_is_the_teachers_and_every_input_counts(
    own: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    adapter = joined(own, theirs)
    x = torch.randn(2, *own, requires_grad=True)
    if adapter is None:
        assert own == theirs
        return
    assert own != theirs
    y: Tensor = adapter(x)
    assert y.shape == (2, *theirs)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    left_out = len(own) == 2 and has_class_token(own[0]) and theirs[:-1] != own[:-1]
    seen = gradient[:, 1:] if left_out else gradient
    assert seen.abs().sum() > 0
    assert not left_out or gradient[:, 0].abs().sum() == 0
    assert all(p.requires_grad for p in adapter.parameters())


@given(maps | tokens, maps | tokens)
def test_where_positions_must_agree_nothing_is_learned_and_channels_stay(
    own: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    adapter = joined(own, theirs, "positions")
    x = torch.randn(2, *own)
    y = x if adapter is None else adapter(x)
    channels = own[0] if len(own) == 3 else own[1]
    wanted = (channels, *theirs[1:]) if len(theirs) == 3 else (theirs[0], channels)
    assert y.shape == (2, *wanted)
    assert adapter is None or not list(adapter.parameters())


@given(maps | tokens | vectors, maps | tokens | vectors, st.sampled_from(["batch", "pair", "own"]))
def test_where_only_the_batch_must_agree_nothing_is_joined(
    own: tuple[int, ...], theirs: tuple[int, ...], match: str
) -> None:
    assert joined(own, theirs, match) is None


@given(widths, widths, sizes, sizes)
def test_kernels_stay_small(
    channels: int, out_channels: int, size: tuple[int, int], out_size: tuple[int, int]
) -> None:
    for step in resample(channels, out_channels, size, out_size):
        if isinstance(step, nn.Conv2d):
            assert max(step.kernel_size) <= 5
            assert max(step.stride) <= 4
        if isinstance(step, nn.ConvTranspose2d):
            assert max(step.kernel_size) <= 8


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        ((16, 8, 8), (16, 8, 8), None),
        ((16, 8, 8), (64, 8, 8), nn.Conv2d(16, 64, 1, bias=False)),
        ((16, 32, 32), (64, 16, 16), nn.Conv2d(16, 64, 3, 2, 1, bias=False)),
        ((16, 8, 8), (8, 16, 16), nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False)),
        ((4,), (9,), nn.Linear(4, 9, bias=False)),
        ((10, 4), (10, 6), nn.Linear(4, 6, bias=False)),
    ],
)
def test_the_customary_layer_is_used(
    own: tuple[int, ...], theirs: tuple[int, ...], expected: nn.Module | None
) -> None:
    assert str(joined(own, theirs)) == str(expected)


def test_tokens_lie_row_by_row_on_their_map() -> None:
    x_BNC = torch.randn(2, 10, 3)  # nine and a class token
    adapter = joined((10, 3), (5, 3, 3), "positions")
    assert adapter is not None
    y_BCHW = adapter(x_BNC)
    for row, column in itertools.product(range(3), range(3)):
        assert torch.equal(y_BCHW[:, :, row, column], x_BNC[:, 1 + 3 * row + column])


def test_a_map_becomes_tokens_behind_the_mean_where_the_teacher_has_a_class_token() -> None:
    x_BCHW = torch.randn(2, 3, 2, 2)
    adapter = joined((3, 2, 2), (5, 7), "positions")
    assert adapter is not None
    y_BNC = adapter(x_BCHW)
    torch.testing.assert_close(y_BNC[:, 0], x_BCHW.mean((2, 3)))
    assert torch.equal(y_BNC[:, 3], x_BCHW[:, :, 1, 0])


def test_to_a_vector_positions_are_averaged() -> None:
    x_BCHW = torch.randn(2, 3, 4, 5)
    adapter = joined((3, 4, 5), (3,))
    assert adapter is not None
    torch.testing.assert_close(adapter(x_BCHW), x_BCHW.mean((2, 3)))


def test_a_vector_against_a_map_is_drawn_to_the_mean_of_the_map() -> None:
    x_BC, t_BCHW = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, 4, 4)
    adapter = joined((3,), (3, 4, 4))
    assert adapter is not None
    (mine,) = torch.autograd.grad(F.mse_loss(adapter(x_BC), t_BCHW), x_BC)
    (mean,) = torch.autograd.grad(F.mse_loss(x_BC, t_BCHW.mean((2, 3))), x_BC)
    torch.testing.assert_close(mine, mean)


def test_sizes_are_averaged_down_and_interpolated_up() -> None:
    x_BCHW = torch.randn(2, 3, 8, 2)
    adapter = joined((3, 8, 2), (3, 4, 4), "positions")
    assert adapter is not None
    halved = F.avg_pool2d(x_BCHW, (2, 1))
    want = F.interpolate(halved, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(adapter(x_BCHW), want)


@pytest.mark.parametrize("match", ["shape", "exit"])
def test_different_classes_are_refused(match: str) -> None:
    with pytest.raises(ConfigError, match="10 classes in the student and 100 in the teacher"):
        join(torch.Size((2, 10)), torch.Size((2, 100)), match, "logits")
    assert join(torch.Size((2, 10)), torch.Size((2, 10)), match, "logits") is None


@pytest.mark.parametrize("theirs", [(4,), (4, 3, 3)])
@pytest.mark.parametrize("spot", ["penultimate", "logits"])
def test_vectors_have_no_positions_to_compare(theirs: tuple[int, ...], spot: str) -> None:
    with pytest.raises(ConfigError, match="positions") as error:
        join(torch.Size((2, 4)), torch.Size((2, *theirs)), "positions", spot)
    assert str(theirs) in str(error.value)


@pytest.mark.parametrize("match", ["shape", "positions"])
@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ((12, 4), (9, 4)),
        ((9, 4), (12, 4)),
        ((12, 4), (4, 3, 3)),
        ((3, 2, 2), (12, 4)),
        ((3, 2, 2), (3, 2, 2, 2)),
    ],
)
def test_shapes_that_nothing_joins_are_both_named(
    own: tuple[int, ...], theirs: tuple[int, ...], match: str
) -> None:
    with pytest.raises(ConfigError) as error:
        joined(own, theirs, match)
    assert str(own) in str(error.value)
    assert str(theirs) in str(error.value)
    assert "'x'" in str(error.value)
    assert "\n" not in str(error.value)


@given(st.integers(1, 40))
def test_no_number_of_tokens_is_ambiguous(side: int) -> None:
    assert grid_side(side**2) == grid_side(side**2 + 1) == side
    assert not has_class_token(side**2)
    assert has_class_token(side**2 + 1)
    assert side == 1 or grid_side(side**2 - 1) is None


def test_a_map_norm_is_a_batch_norm_and_takes_single_values_as_well() -> None:
    torch.manual_seed(0)
    norm, plain = MapNorm(3), nn.BatchNorm2d(3)
    for images in (torch.randn(4, 3, 5, 5), torch.randn(1, 3, 2, 1), torch.randn(2, 3, 1, 1)):
        torch.testing.assert_close(norm(images), plain(images), rtol=0, atol=0)
    assert norm.state_dict().keys() == plain.state_dict().keys()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    single = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        plain(single)
    torch.testing.assert_close(norm(single), plain.eval()(single))
    torch.testing.assert_close(dict(norm.state_dict()), before, rtol=0, atol=0)
