"""Splits are disjoint, complete, by class, and the same every time."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import DataError
from toolchain.data.partition import TEST_SHARE, hold_out, three_parts
from toolchain.data.samples import Augment, Data, Preprocess, Split


def _split(labels: list[int]) -> Split:
    """Samples whose single pixel is their position."""
    positions = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return Split.in_memory(positions, torch.tensor(labels, dtype=torch.int64))


def _positions(split: Split) -> list[int]:
    return split.images(torch.arange(len(split)))[:, 0, 0, 0].tolist()


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=120),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
)
def test_one_part_is_cut_into_three_disjoint_ones(
    labels: list[int], share: float, seed: int
) -> None:
    labels = [0, 0, 0, 1, 1, 1, *labels]
    parts = three_parts({"train": _split(labels)}, share, seed)
    positions = [_positions(part) for part in parts]
    assert sorted(chain(*positions)) == list(range(len(labels)))
    for part, found in zip(parts, positions, strict=True):
        assert part.labels_N.tolist() == [labels[position] for position in found]
    assert set(parts[0].labels_N.tolist()) == set(labels)  # every class can be learned


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.05, 0.5), seed=st.integers(0, 9))
def test_share_holds_in_every_class(share: float, seed: int) -> None:
    labels = [0] * 40 + [1] * 100
    train, validation, test = three_parts(
        {"train": _split(labels), "test": _split([0, 1])}, share, seed
    )
    assert len(test) == 2
    assert (validation.labels_N == 0).sum() == max(1, round(40 * share))
    assert (validation.labels_N == 1).sum() == max(1, round(100 * share))
    assert len(train) + len(validation) == 140


def test_shares_of_one_part() -> None:
    train, validation, test = three_parts({"train": _split([0, 1] * 100)}, 0.1, 0)
    assert (len(test), len(validation), len(train)) == (200 * TEST_SHARE, 16, 144)


def test_given_parts_stay_as_they_are() -> None:
    parts = {"train": _split([0, 1]), "validation": _split([1]), "test": _split([0])}
    assert three_parts(parts, 0.5, 0) == (parts["train"], parts["validation"], parts["test"])


def test_test_part_is_cut_where_only_validation_is_given() -> None:
    given_part = _split([0, 1])
    train, validation, test = three_parts(
        {"train": _split([0, 1] * 10), "validation": given_part}, 0.5, 0
    )
    assert validation is given_part
    assert (len(train), len(test)) == (16, 4)
    assert not set(_positions(train)) & set(_positions(test))


def test_seed_decides_and_decides_alike() -> None:
    cuts = [
        _positions(three_parts({"train": _split([0, 1] * 50)}, 0.2, seed)[1]) for seed in (0, 0, 1)
    ]
    assert cuts[0] == cuts[1] != cuts[2]


def test_cut_does_not_change_between_versions() -> None:
    # A changed cut would let a resumed experiment train on its own validation samples.
    assert _positions(three_parts({"train": _split([0, 1] * 10)}, 0.2, 0)[1]) == [1, 2, 6, 17]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"train": []}, "the train part has no samples"),
        ({"train": [0, 1], "test": []}, "the test part has no samples"),
        ({"train": [2, 2, 2]}, "all 3 training samples have label 2; accepted: at least two"),
        ({"train": [0, 1]}, "2 training samples are too few to cut a test part"),
    ],
)
def test_unusable_parts(parts: dict[str, list[int]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        three_parts({name: _split(labels) for name, labels in parts.items()}, 0.1, 0)


def _data(labels: list[int]) -> Data:
    train, rest = _split(labels), _split([0, 1])
    how = Preprocess((0.0,), (1.0,))
    return Data(train, rest, rest, ("a", "b"), (1, 1, 1), how, Augment(), (), "content")


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=4, max_size=120),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 5),
)
def test_what_is_held_out_is_not_trained_on(labels: list[int], share: float, seed: int) -> None:
    labels = [0, 0, 1, 1, *labels]
    left, held = hold_out(_data(labels), share, seed)
    positions = [_positions(left.train), _positions(held)]
    assert sorted(chain(*positions)) == list(range(len(labels)))
    assert set(left.train.labels_N.tolist()) == set(labels)
    for label in set(labels):
        members = labels.count(label)
        taken = int((held.labels_N == label).sum())
        assert taken == min(members - 1, max(1, round(share * members)))
    again, same = hold_out(_data(labels), share, seed)
    assert [_positions(again.train), _positions(same)] == positions
    assert again.fingerprint == left.fingerprint


def test_held_out_data_is_other_data() -> None:
    data = _data([0, 1] * 20)
    marks = [data.fingerprint]
    marks += [hold_out(data, share, seed)[0].fingerprint for share in (0.1, 0.2) for seed in (0, 1)]
    assert len(set(marks)) == 5
    left, _ = hold_out(data, 0.1, 0)
    assert left.validation is data.validation
    assert left.test is data.test


def test_it_is_not_the_validation_part_of_the_same_seed() -> None:
    labels = [0, 1] * 50
    _, validation, _ = three_parts({"train": _split(labels), "test": _split([0, 1])}, 0.1, 0)
    _, held = hold_out(_data(labels), 0.1, 0)
    assert set(_positions(validation)) != set(_positions(held))


@pytest.mark.parametrize(
    ("share", "at_least", "said"),
    [
        (0.0, 1, "held_out: 0 of the training part is to be held out; accepted: above 0"),
        (1.0, 1, "held_out: 1 of the training part is to be held out; accepted: above 0"),
        (float("nan"), 1, "held_out: nan of the training part"),
        (
            0.1,
            5,
            "held_out: 0.1 of 40 training samples is 4; accepted: at least 5; hold out a larger",
        ),
    ],
)
def test_a_share_that_is_of_no_use_is_refused(share: float, at_least: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        hold_out(_data([0, 1] * 20), share, 0, at_least=at_least)


def test_too_few_to_hold_any_out() -> None:
    with pytest.raises(DataError, match="2 training samples are too few to cut a held-out part"):
        hold_out(_data([0, 1]), 0.5, 0)
