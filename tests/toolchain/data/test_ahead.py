"""Items that are made ahead are the same ones in the same order, and so are their errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.data.ahead import ahead


@settings(max_examples=30, deadline=None)
@given(items=st.lists(st.integers(), max_size=12), count=st.integers(1, 5))
def test_same_items_in_the_same_order(items: list[int], count: int) -> None:
    assert list(ahead(items, count)) == items


def test_later_items_are_made_while_one_is_used_and_no_more_than_asked() -> None:
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    drawn = ahead(items(), 2)
    assert next(drawn) == 0
    assert third.wait(5)  # 1 and 2 are made without being asked for
    drawn.close()  # type: ignore[attr-defined]
    assert made == [0, 1, 2]


def test_an_error_comes_in_its_place_and_ends_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    drawn = ahead(items(), 3)
    assert [next(drawn), next(drawn)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(drawn)
    assert list(drawn) == []
