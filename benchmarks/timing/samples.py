"""Latencies in the order of measurement, and how they were taken: in rounds, in openings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from deploy.errors import DataError

# Of more samples each k-th is as good for an interval, and a board has to compute it too.
MOST_SAMPLES = 50_000


@dataclass(frozen=True, eq=False)
class Samples:
    """Latencies in the order of measurement, how many of them each round gave, and how many rounds
    each opening of the session.

    Raises:
        DataError: There are none, one is not finite, or the rounds do not add up to them.
    """

    values: np.ndarray
    round_lengths: np.ndarray
    opening_rounds: np.ndarray

    @classmethod
    def of(
        cls,
        values: Sequence[float] | np.ndarray,
        rounds: Sequence[int] = (),
        openings: Sequence[int] = (),
    ) -> Samples:
        taken = np.asarray(values, np.float64).ravel()
        lengths = np.asarray(rounds if len(rounds) else np.ones(len(taken)), np.int64)
        if not len(taken) or not np.isfinite(taken).all():
            what = "one is not finite" if len(taken) else "there are none"
            raise DataError(f"samples: {what}; give at least one latency, all of them numbers")
        if lengths.sum() != len(taken) or (lengths < 1).any():
            raise DataError(
                f"samples: {len(taken)} in rounds that hold {lengths.sum()}; "
                "give the length of every round, 1 or more"
            )
        opened = np.asarray(openings if len(openings) else [len(lengths)], np.int64)
        if opened.sum() != len(lengths) or (opened < 1).any():
            raise DataError(
                f"samples: {len(lengths)} rounds in openings that hold {opened.sum()}; "
                "give the rounds of every opening, 1 or more"
            )
        return cls(taken, lengths, opened)

    @property
    def rounds(self) -> int:
        return len(self.round_lengths)

    def thinned(self, most: int = MOST_SAMPLES) -> Samples:
        """Each k-th sample of every round, its first at least, so that about ``most`` are left."""
        step = math.ceil(len(self.values) / most)
        if step <= 1:
            return self
        starts = np.cumsum(self.round_lengths) - self.round_lengths
        place = np.arange(len(self.values)) - np.repeat(starts, self.round_lengths)
        lengths = -(-self.round_lengths // step)
        return Samples(self.values[place % step == 0], lengths, self.opening_rounds)

    def with_fewer_rounds(self, most: int = MOST_SAMPLES) -> Samples:
        """Each k-th round, so that at most ``most`` are left; for rounds too short to thin."""
        step = math.ceil(self.rounds / most)
        if step <= 1:
            return self
        kept = np.arange(self.rounds) % step == 0
        opening = np.repeat(np.arange(len(self.opening_rounds)), self.opening_rounds)[kept]
        return Samples(
            self.values[np.repeat(kept, self.round_lengths)],
            self.round_lengths[kept],
            np.unique(opening, return_counts=True)[1],
        )

    def reduced(self) -> Samples:
        """What is enough for an interval."""
        return self.with_fewer_rounds().thinned()
