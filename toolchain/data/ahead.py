"""Making what is needed next while what is needed now is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The same items in the same order; up to ``count`` are made in a thread before they are asked for.

    An error comes where its item would have come.
    """
    source = iter(items)
    waiting: deque[Future[list[Item]]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def ask() -> None:
            waiting.append(pool.submit(lambda: list(islice(source, 1))))

        try:
            for _ in range(count):
                ask()
            while found := waiting.popleft().result():
                ask()
                yield found[0]
        finally:
            for future in waiting:
                future.cancel()
