"""Batches: complete, in an order of their own each epoch, and the same bytes after a resume."""

from __future__ import annotations

import pytest
import torch

from deploy.errors import DataError
from toolchain.data.batches import batches, evaluation_batches, steps_per_epoch
from toolchain.data.samples import Augment, Data, Preprocess, Split


def _data(count: int = 22, augment: Augment | None = None) -> Data:
    pixels = torch.randint(
        0, 256, (count, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = Split.in_memory(pixels, torch.arange(count))
    preprocess = Preprocess((0.5,) * 3, (0.25,) * 3)
    how = augment or Augment(crop=1, flip=True)
    return Data(split, split, split, ("a", "b"), (3, 4, 4), preprocess, how, (), "")


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [5] * 4), (False, [5] * 4 + [2])])
def test_an_epoch_has_every_sample_once(drop_last: bool, sizes: list[int]) -> None:
    drawn = list(batches(_data(), 5, seed=0, epoch=0, drop_last=drop_last))
    labels = torch.cat([labels_B for _, labels_B, _ in drawn])
    assert [len(images) for images, _, _ in drawn] == sizes
    assert len(labels.unique()) == len(labels) == sum(sizes)
    assert steps_per_epoch(_data(), 5, drop_last=drop_last) == len(sizes)


def test_images_are_the_samples_of_their_labels() -> None:
    data = _data(augment=Augment())
    for images, labels, index in batches(data, 5, seed=0, epoch=3):
        assert torch.equal(data.train.labels_N[index], labels)
        assert torch.equal(images, data.preprocess.normalize(data.train.images(labels)))
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resuming_gives_the_same_bytes(start: int) -> None:
    whole = list(batches(_data(), 5, seed=1, epoch=2))
    torch.rand(7)  # the global generator plays no part
    rest = list(batches(_data(), 5, seed=1, epoch=2, start=start))
    assert len(rest) == len(whole) - start
    for batch, again in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))


def test_seed_and_epoch_change_order_and_augmentation() -> None:
    orders = {
        tuple(torch.cat([y for _, y, _ in batches(_data(), 11, seed=s, epoch=e)]).tolist())
        for s in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 4
    data = _data(augment=Augment(crop=1))
    by_label = [
        {int(y[i]): x[i] for x, y, _ in batches(data, 11, seed=0, epoch=e) for i in range(11)}
        for e in (0, 1)
    ]
    assert not all(torch.equal(by_label[0][label], by_label[1][label]) for label in range(22))


def test_padding_is_black_before_normalisation() -> None:
    data = _data(augment=Augment(crop=3))
    images = torch.cat([x for x, _, _ in batches(data, 22, seed=0, epoch=0)])
    assert (images == -2.0).float().mean() > 0.2  # (0 - 0.5) / 0.25


def test_evaluation_is_in_order_and_plain() -> None:
    data = _data()
    drawn = list(evaluation_batches(data.test, data.preprocess, batch_size=10))
    assert [len(labels) for _, labels in drawn] == [10, 10, 2]
    assert torch.cat([labels for _, labels in drawn]).tolist() == list(range(22))
    images = torch.cat([images for images, _ in drawn])
    assert torch.equal(images, data.preprocess.normalize(data.test.images(torch.arange(22))))


def test_fewer_samples_than_a_batch() -> None:
    with pytest.raises(DataError, match="22 training samples are less than one batch of 23"):
        next(batches(_data(), 23, seed=0, epoch=0))
    assert len(next(batches(_data(), 23, seed=0, epoch=0, drop_last=False))[1]) == 22
