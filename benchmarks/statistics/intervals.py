"""What a difference of two latencies is worth: intervals that know that samples are not independent.

Latencies of neighbouring calls resemble each other (clocks, caches, neighbours), so intervals for
independent samples are too narrow.  The stationary bootstrap resamples runs of consecutive *rounds*,
of random length with mean L (Politis, Romano 1994, doi 10.1080/01621459.1994.10476870); L follows
from the autocorrelation (Politis, White 2004, doi 10.1081/ETC-120028836, with the correction of
Patton, Politis, White 2009, doi 10.1080/07474930802459016).  A round is a stretch of samples of one
session; where two sessions took turns, their rounds are resampled in pairs, so that what hit both
cancels.  Without rounds, a sample is a round of one.

Loaded twice, one file is not twice as fast to the same digit: where its memory came to lie decides
about a percent, for as long as it is loaded (Mytkowicz et al. 2009, doi 10.1145/1508244.1508275; Kalibera,
Jones 2013, doi 10.1145/2464157.2464160).  Where sessions were opened several times in a run, openings
are resampled too, and the wider of both intervals is stated.

What decides about a percentile is not how large a latency is but whether it lies above the
percentile (a quantile's influence function), so L is taken from the rounds' shares above it.
Intervals hold with 95 % and are widened for few rounds, by Student's t over the normal quantile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterator, Sequence, Tuple, Union

import numpy as np

from benchmarks.statistics.correlation import block_length
from benchmarks.statistics.resampling import Mean, Percentile, block_weights, opening_weights
from benchmarks.timing.samples import Samples
from deploy.errors import DataError

REPLICATES = 1000
Interval = Tuple[float, float]
FEWEST_OPENINGS = 4
_Z = 1.959964


@dataclass(frozen=True)
class Comparison:
    """One number of a sequence against the same number of another: a / b and a - b."""

    ratio: float
    ratio_interval: Interval
    difference: float
    difference_interval: Interval

    def to_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "ratio_interval95": list(self.ratio_interval),
            "difference": self.difference,
            "difference_interval95": list(self.difference_interval),
        }


def percentile_interval(
    samples: Samples, percent: float, *, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """The interval of 95 % of a percentile of one sequence."""
    return _interval(samples, Percentile(percent), replicates, seed)


def mean_interval(samples: Samples, *, replicates: int = REPLICATES, seed: int = 0) -> Interval:
    """The interval of 95 % of the mean of one sequence."""
    return _interval(samples, Mean(), replicates, seed)


def compare_percentiles(
    a: Samples,
    b: Samples,
    percent: float,
    *,
    paired: bool,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """A percentile of ``a`` against that of ``b``; ``paired`` where round i of both was one turn."""
    return _compare(a, b, Percentile(percent), paired, replicates, seed)


def compare_means(
    a: Samples, b: Samples, *, paired: bool, replicates: int = REPLICATES, seed: int = 0
) -> Comparison:
    """The mean of ``a`` against that of ``b``, likewise."""
    return _compare(a, b, Mean(), paired, replicates, seed)


def compare_gains(
    a: tuple[Samples, Samples],
    b: tuple[Samples, Samples],
    percent: float,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """(a[0] / a[1]) against (b[0] / b[1]): a gain over what ran in turns with it, in two runs."""
    estimate = Percentile(percent)
    draws, points = [], []
    for number, (one, other) in enumerate((a, b)):
        pair = _draws_of_pair(one.reduced(), other.reduced(), estimate, replicates, [seed, number])
        draws.append([(ones / others, widening) for ones, others, widening in pair])
        points.append(estimate.point(one) / estimate.point(other))
    return _comparison(points[0], points[1], _crossed(draws[0], draws[1]))


_Statistic = Union[Percentile, Mean]
_Draw = Tuple[np.ndarray, float]  # replicates, and how much to widen what they span


def _schemes(
    samples: Samples, length: float, replicates: int, seed: Sequence[int]
) -> Iterator[tuple[Iterator[np.ndarray], float]]:
    """Weights of rounds and their widening: by blocks of rounds, and by openings if there are many."""
    rng = np.random.default_rng([*seed, 0])
    yield (
        block_weights(samples.rounds, length, replicates, rng),
        _widening(samples.rounds / length),
    )
    openings = samples.opening_rounds
    if len(openings) >= FEWEST_OPENINGS:
        rng = np.random.default_rng([*seed, 1])
        yield opening_weights(openings, replicates, rng), _widening(len(openings))


def _draws(
    samples: Samples, estimate: _Statistic, replicates: int, seed: Sequence[int]
) -> list[_Draw]:
    length = block_length(estimate.influence(samples))
    value = estimate.under_weights(samples)
    return [
        (np.concatenate([value(weights) for weights in scheme]), widening)
        for scheme, widening in _schemes(samples, length, replicates, seed)
    ]


def _draws_of_pair(
    a: Samples, b: Samples, estimate: _Statistic, replicates: int, seed: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """The same weights for both; blocks as long as what does not hit both alike asks for."""
    if a.rounds != b.rounds or (a.opening_rounds != b.opening_rounds).any():
        raise DataError(
            f"samples: {a.rounds} rounds of one and {b.rounds} of the other do not make pairs; "
            "compare them as separate runs"
        )
    length = block_length(estimate.influence(a) - estimate.influence(b))
    value_a, value_b = estimate.under_weights(a), estimate.under_weights(b)
    made = []
    for scheme, widening in _schemes(a, length, replicates, seed):
        drawn = [(value_a(weights), value_b(weights)) for weights in scheme]
        of_a, of_b = (np.concatenate(each) for each in zip(*drawn))
        made.append((of_a, of_b, widening))
    return made


def _interval(samples: Samples, estimate: _Statistic, replicates: int, seed: int) -> Interval:
    draws = _draws(samples.reduced(), estimate, replicates, [seed])
    return _bounds(draws, estimate.point(samples))


def _compare(
    a: Samples, b: Samples, estimate: _Statistic, paired: bool, replicates: int, seed: int
) -> Comparison:
    if paired:
        draws = _draws_of_pair(a.reduced(), b.reduced(), estimate, replicates, [seed])
    else:
        draws = _crossed(
            _draws(a.reduced(), estimate, replicates, [seed, 0]),
            _draws(b.reduced(), estimate, replicates, [seed, 1]),
        )
    return _comparison(estimate.point(a), estimate.point(b), draws)


def _crossed(a: list[_Draw], b: list[_Draw]) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Independent replicates side by side: the widest scheme of either goes last."""
    return [
        (one[0], other[0], max(one[1], other[1])) for one, other in ((a[0], b[0]), (a[-1], b[-1]))
    ]


def _comparison(
    a: float, b: float, draws: Sequence[tuple[np.ndarray, np.ndarray, float]]
) -> Comparison:
    ratio = a / b if b else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [(one / other, widening) for one, other, widening in draws]
    differences = [(one - other, widening) for one, other, widening in draws]
    return Comparison(
        ratio=ratio,
        ratio_interval=_bounds(ratios, ratio),
        difference=a - b,
        difference_interval=_bounds(differences, a - b, positive=False),
    )


def _bounds(draws: Sequence[_Draw], point: float, *, positive: bool = True) -> Interval:
    """The hull of what each scheme spans; of what is positive, widened as a factor."""
    lows, highs = [], []
    for drawn, widening in draws:
        low, high = np.quantile(drawn, [0.025, 0.975])
        if positive and point > 0 and low > 0:
            lows.append(point * (min(low, point) / point) ** widening)
            highs.append(point * (max(high, point) / point) ** widening)
        else:
            lows.append(point + widening * min(low - point, 0))
            highs.append(point + widening * max(high - point, 0))
    return float(min(lows)), float(max(highs))


def _widening(blocks: float) -> float:
    """Student's t over the normal quantile, for as many blocks as are independent."""
    freedom = max(blocks - 1, 2.0)
    z = _Z
    # Cornish and Fisher's expansion of t in powers of one over the degrees of freedom.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(t / z * math.sqrt((freedom + 1) / freedom))
