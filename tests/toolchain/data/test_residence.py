"""Samples on a device: copied where they fit, the same bytes wherever they are drawn from."""

from __future__ import annotations

import pytest
import torch

from toolchain.data.batches import batches, evaluation_batches
from toolchain.data.residence import FREE_SHARE, resident
from toolchain.data.samples import Augment, Data, Preprocess, Split

# A device without memory stands for a GPU: whether and what would be copied can be seen on it.
META = "meta"


def _split(count: int = 20) -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 6, 6, 3), generator=generator, dtype=torch.uint8)
    return Split.in_memory(pixels, torch.arange(count) % 4)


def _streamed(split: Split) -> Split:
    return Split(split.labels_N, split.images)


def _data(train: Split) -> Data:
    how = Preprocess((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    names = tuple("abcd")
    return Data(train, train, train, names, (3, 6, 6), how, Augment(2, True), (), "")


def test_what_fits_is_copied_once() -> None:
    split = _split()
    free_bytes = int(20 * 6 * 6 * 3 / FREE_SHARE)
    there = resident(split, META, free_bytes)
    assert there.device == META
    assert there.images(torch.arange(2, device=META)).device.type == META
    assert resident(split, META, free_bytes) is there
    assert resident(_split(), META, free_bytes - 4).device == "cpu"


def test_of_a_part_only_its_own_pixels_are_copied() -> None:
    part = _split().part(torch.tensor([5, 3, 8])).part(torch.tensor([2, 0]))
    assert part.size_bytes == 2 * 6 * 6 * 3
    there = resident(part, META, int(part.size_bytes / FREE_SHARE))
    assert len(there) == 2
    assert there.size_bytes == part.size_bytes


def test_streamed_samples_and_those_that_are_there_stay() -> None:
    split = _split()
    assert _streamed(split).size_bytes is None
    assert resident(_streamed(split), META, 10**9) is not split
    assert resident(_streamed(split), META, 10**9).device == "cpu"
    assert resident(split, "cpu") is split
    assert split.on("cpu") is split


def test_an_empty_part_has_no_bytes() -> None:
    assert _split().part(torch.arange(0)).size_bytes == 0


def test_every_draw_of_a_resident_split_reaches_the_device() -> None:
    """Shapes and devices of a whole epoch where nothing can be read back: a read would fail."""
    data = _data(_split())
    data.train.on(META)
    drawn = list(batches(data, 8, seed=0, epoch=0, device=META))
    assert [batch.images_BCHW.shape for batch in drawn] == [(8, 3, 6, 6)] * 2
    for batch in drawn:
        assert {one.device.type for one in batch} == {META}
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    sizes = [len(x) for x, _ in evaluation_batches(data.train, data.preprocess, 8, device=META)]
    assert sizes == [8, 8, 4]


def test_streamed_samples_are_read_ahead_and_reach_the_device() -> None:
    drawn = list(batches(_data(_streamed(_split())), 8, seed=0, epoch=0, device=META))
    assert [batch.index_B.device.type for batch in drawn] == [META, META]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("streamed", [False, True])
def test_a_gpu_sees_the_bytes_that_a_cpu_sees(streamed: bool) -> None:
    train = _streamed(_split()) if streamed else _split()
    here, there = (
        list(batches(_data(train), 8, seed=0, epoch=1, device=device)) for device in ("cpu", "cuda")
    )
    for one, other in zip(here, there, strict=True):
        for a, b in zip(one, other, strict=True):
            assert b.is_cuda
            assert torch.equal(a, b.cpu())
