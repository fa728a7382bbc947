"""More rows than a session takes at once, or fewer: in as many calls as its batch asks for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from deploy.sessions.session import Feeds, Session


@runtime_checkable
class Batched(Protocol):
    """A session with a batch that is neither fixed nor free, such as an engine's profiles."""

    def batch_for(self, rows: int) -> int:
        """The largest batch that is not above ``rows``, or the least that there is."""
        ...


def run_rows(session: Session, feeds: Feeds) -> Feeds:
    """The outputs for all rows of ``feeds``, whose first axis is the batch.

    A last call that would be too small is filled up with the first rows; what it answers to them is
    dropped.

    Raises:
        DeviceError: As the session's ``run``.
    """
    rows = len(next(iter(feeds.values())))
    size = session.inputs[0].shape[0] if session.inputs[0].shape else None
    if size is None:
        size = session.batch_for(rows) if isinstance(session, Batched) else rows
    if size == rows or not rows:
        return session.run(feeds)
    answers = []
    for start in range(0, rows, size):
        places = np.arange(start, start + size) % rows
        answers.append(session.run({name: value[places] for name, value in feeds.items()}))
    return {name: np.concatenate([each[name] for each in answers])[:rows] for name in answers[0]}
