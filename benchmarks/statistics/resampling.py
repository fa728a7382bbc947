"""A statistic under weights of rounds, and the weights: the working parts of a bootstrap.

Axes: K replicates, N rounds, B bins, D draws, O openings.
"""

from __future__ import annotations

import math
from typing import Callable, Iterator

import numpy as np

from benchmarks.timing.percentiles import rank
from benchmarks.timing.samples import Samples

BINS, MOST_CELLS = 1000, 2_000_000


class Percentile:
    """A percentile: its value, its influence per round, and its value under weights of rounds."""

    def __init__(self, percent: float) -> None:
        self.percent = percent

    def point(self, samples: Samples) -> float:
        place = rank(self.percent, len(samples.values))
        return float(np.partition(samples.values, place)[place])

    def influence(self, samples: Samples) -> np.ndarray:
        """Relative change of the percentile that each round makes, up to a constant."""
        sorted_values = np.sort(samples.values)
        point = sorted_values[rank(self.percent, len(sorted_values))]
        near = min(5.0, (100 - self.percent) / 2)
        low, high = (sorted_values[rank(self.percent + off, len(sorted_values))]
                     for off in (-near, near))  # fmt: skip
        steepness = (high - low) / (2 * near / 100)  # one over the density
        above = (samples.values > point) - (100 - self.percent) / 100
        return _per_round(above, samples) * (steepness / abs(point) if steepness and point else 1.0)

    def under_weights(self, samples: Samples) -> Callable[[np.ndarray], np.ndarray]:
        """Of many weights ``[replicates, rounds]`` at once, to the percentile of each.

        The sorted samples are cut into ``BINS`` parts.  How many samples each round has in each is
        counted once; a replicate finds its part by a product, its place inside in proportion.
        """
        n, rounds = len(samples.values), samples.rounds
        order = np.argsort(samples.values, kind="stable")
        sorted_values = samples.values[order]
        round_of = np.repeat(np.arange(rounds), samples.round_lengths)[order]
        bins = min(n, BINS)
        if rounds * bins > MOST_CELLS:
            return _one_by_one(self.percent, sorted_values, round_of)
        edges = np.linspace(0, n, bins + 1).round().astype(np.int64)
        bin_of = np.repeat(np.arange(bins), np.diff(edges))
        counts = np.bincount(round_of * bins + bin_of, minlength=rounds * bins)
        counts_RB = counts.reshape(rounds, bins).astype(np.float64)

        def values(weights_KR: np.ndarray) -> np.ndarray:
            upto_KB = np.cumsum(weights_KR @ counts_RB, axis=1)
            places = np.array([rank(self.percent, int(total)) for total in upto_KB[:, -1]])
            part = (upto_KB <= places[:, None]).sum(axis=1)
            each = np.arange(len(part))
            before = np.where(part > 0, upto_KB[each, part - 1], 0)
            inside = (places - before) / (upto_KB[each, part] - before)
            chosen = edges[part] + np.floor(inside * (edges[part + 1] - edges[part]))
            found: np.ndarray = sorted_values[chosen.astype(np.int64)]
            return found

        return values


def _one_by_one(
    percent: float, sorted_values: np.ndarray, round_of: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Where there are as many rounds as samples, and a table would be too large."""

    def values(weights_KR: np.ndarray) -> np.ndarray:
        found = np.empty(len(weights_KR))
        for place, weights in enumerate(weights_KR):
            counts = np.cumsum(weights[round_of])
            wanted = rank(percent, int(counts[-1]))
            found[place] = sorted_values[np.searchsorted(counts, wanted, side="right")]
        return found

    return values


class Mean:
    """The mean, likewise."""

    def point(self, samples: Samples) -> float:
        return float(samples.values.mean())

    def influence(self, samples: Samples) -> np.ndarray:
        mean = samples.values.mean()
        return _per_round(samples.values - mean, samples) / (abs(mean) or 1.0)

    def under_weights(self, samples: Samples) -> Callable[[np.ndarray], np.ndarray]:
        sums = _per_round(samples.values, samples) * samples.round_lengths

        def values(weights_KR: np.ndarray) -> np.ndarray:
            found: np.ndarray = (weights_KR @ sums) / (weights_KR @ samples.round_lengths)
            return found

        return values


def _per_round(values: np.ndarray, samples: Samples) -> np.ndarray:
    starts = np.cumsum(samples.round_lengths) - samples.round_lengths
    means: np.ndarray = np.add.reduceat(values, starts) / samples.round_lengths
    return means


def block_weights(
    rounds: int, length: float, replicates: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """How often each round was drawn: blocks of geometric length from random starts, on a circle.

    ``[replicates, rounds]``, a few megabytes at a time.
    """
    expected = rounds / length
    draws = math.ceil(expected + 6 * math.sqrt(expected) + 6)
    for several in _portions(replicates, rounds):
        drawn_KD = np.minimum(rng.geometric(1 / length, (several, draws)), rounds)
        ends_KD = np.minimum(np.cumsum(drawn_KD, axis=1), rounds)
        ends_KD[:, -1] = rounds
        lengths_KD = np.diff(ends_KD, axis=1, prepend=0)  # what comes after the last round is 0
        starts_KD = rng.integers(0, rounds, (several, draws))
        starts_KD += np.arange(several)[:, None] * (2 * rounds + 1)
        cells = several * (2 * rounds + 1)
        steps = np.bincount(starts_KD.ravel(), minlength=cells)
        steps -= np.bincount((starts_KD + lengths_KD).ravel(), minlength=cells)
        covered_KN = np.cumsum(steps.reshape(several, -1)[:, : 2 * rounds], axis=1)
        yield (covered_KN[:, :rounds] + covered_KN[:, rounds:]).astype(np.float64)


def opening_weights(
    opening_rounds: np.ndarray, replicates: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The same with whole openings."""
    n = len(opening_rounds)
    for several in _portions(replicates, int(opening_rounds.sum())):
        drawn_KO = rng.multinomial(n, np.full(n, 1 / n), several)
        yield np.repeat(drawn_KO, opening_rounds, axis=1).astype(np.float64)


def _portions(replicates: int, rounds: int) -> Iterator[int]:
    at_once = max(1, min(250, MOST_CELLS // rounds))
    for first in range(0, replicates, at_once):
        yield min(at_once, replicates - first)
