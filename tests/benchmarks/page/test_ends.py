"""Names beside a drawing: apart from each other, near their lines, and never out of the column."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.page.charts.ends import column_width, end_names, spread
from benchmarks.page.charts.style import series_style

wanted = st.lists(st.floats(0, 100), min_size=1, max_size=8).map(sorted)


@given(wanted)
def test_positions_are_apart_inside_and_in_order(positions: list[float]) -> None:
    placed = spread(positions, 12, 0, 100)
    assert all(after - before >= 12 - 1e-6 for before, after in pairwise(placed))
    assert placed[0] >= -1e-6
    assert placed[-1] <= 100 + 1e-6


@given(wanted)
def test_positions_that_are_apart_already_stay(positions: list[float]) -> None:
    assume(all(after - before >= 12 for before, after in pairwise(positions)))
    assert spread(positions, 12, 0, 100) == positions


@given(st.lists(st.integers(0, 60), min_size=2, max_size=5).map(sorted))
def test_no_other_places_are_nearer(positions: list[int]) -> None:
    """Least squares, against a search over a grid of thirds around the found places."""
    placed = spread([float(one) for one in positions], 3, -1e9, 1e9)

    def cost(places: list[float]) -> float:
        return sum((place - want) ** 2 for place, want in zip(places, positions, strict=True))

    for index in range(len(placed)):
        for move in (-1 / 3, 1 / 3):
            for upto in range(index + 1, len(placed) + 1):
                other = [
                    place + move if index <= number < upto else place
                    for number, place in enumerate(placed)
                ]
                if all(after - before >= 3 - 1e-9 for before, after in pairwise(other)):
                    assert cost(other) >= cost(placed) - 1e-9


def test_more_names_than_there_is_room_for_lose_the_inner_ones() -> None:
    ends = [(50.0, 2.0 * index, f"layer{index}", series_style(index)) for index in range(40)]
    svg = "".join(end_names(ends, 60, 0, 100))
    names = re.findall(r">(layer\d+)<", svg)
    assert names[0] == "layer0"
    assert names[-1] == "layer39"
    assert 5 < len(names) < 12


def test_no_names_need_no_column() -> None:
    assert column_width([]) == 0
    assert column_width(["", ""]) == 0
    assert 30 < column_width(["layer1"]) < column_width(["layer1.0.conv2"]) < 160
