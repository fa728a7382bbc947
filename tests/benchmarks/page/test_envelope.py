"""A thinned series keeps its mean and extremes, stretch by stretch, however long it is."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.page.envelope import Envelope

values = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=400)


@given(values, st.sampled_from([2, 4, 8, 128]), st.integers(1, 130))
def test_stretches_partition_the_series(series: list[float], most: int, shown: int) -> None:
    envelope = Envelope(most)
    for x, y in enumerate(series):
        envelope.add(x, y)
    found = envelope.stretches(shown)
    assert len(found) <= min(most, shown)
    assert found[0].start == 0
    assert found[-1].end == len(series) - 1
    position = 0
    for stretch in found:
        assert stretch.start == position
        part = series[int(stretch.start) : int(stretch.end) + 1]
        position += len(part)
        assert stretch.size == len(part)
        assert (stretch.low, stretch.high) == (min(part), max(part))
        assert abs(stretch.mean - statistics.fmean(part)) <= 1e-6 * max(1, *map(abs, part))
        assert stretch.low <= stretch.mean <= stretch.high
    assert position == len(series) == envelope.count
    assert envelope.last == (len(series) - 1, series[-1])


def test_a_short_series_is_exact() -> None:
    envelope = Envelope()
    for x, y in ((3, 0.5), (7, 0.25), (8, 0.25)):
        envelope.add(x, y)
    assert [(one.middle, one.mean) for one in envelope.stretches(99)] == [
        (3, 0.5),
        (7, 0.25),
        (8, 0.25),
    ]


def test_stretches_are_equally_long_and_no_fewer_than_half_of_what_is_allowed() -> None:
    envelope = Envelope(16)
    for x in range(10_000):
        envelope.add(x, x % 7)
    counts = [one.size for one in envelope.stretches(16)]
    assert 8 <= len(counts) <= 16
    assert len(set(counts[:-1])) == 1
    assert counts[-1] <= counts[0]


def test_changes_are_where_they_were_and_not_endless() -> None:
    envelope = Envelope(4)
    for x in range(1000):
        envelope.add(x, 1.0 if 300 <= x < 450 else 0.0)
    assert envelope.changes == [(0, 0.0), (300, 1.0), (450, 0.0)]
    noisy = Envelope(4)
    for x in range(1000):
        noisy.add(x, x)
    assert len(noisy.changes) < 20
