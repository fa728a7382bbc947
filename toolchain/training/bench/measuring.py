"""Every way of training in turn, round after round, in the product's own loop."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolchain.data.samples import Data
from toolchain.quantization.residual_kernels import fused_adds
from toolchain.training.bench.ways import PLAIN, Way
from toolchain.training.config import Training
from toolchain.training.loop import fit
from toolchain.training.precision import Precision

WARM_UP_STEPS, PACE_STEPS = 3, 5


@dataclass(frozen=True)
class Mode:
    """One way of training, measured.

    Attributes:
        images_per_s: In each round.
        ratios: To plain training in the same round.
        against: The way that its step is compared with.
        times: How many of that way's steps one of its own takes, in each round.
        at_most: The largest of ``times`` that is asked for, if one is.
        taught: Whether it follows a teacher.
    """

    name: str
    images_per_s: tuple[float, ...]
    ratios: tuple[float, ...]
    against: str = PLAIN
    times: tuple[float, ...] = ()
    at_most: float | None = None
    taught: bool = False


class Bench:
    """Trains ways in turn; what happens in every K-th step only is measured in multiples of K.

    Args:
        ways: By name, plain training among them.
        data: What all are trained on.
        batch_size: Images per step.
        precision: Of all.
    """

    def __init__(
        self, ways: Mapping[str, Way], data: Data, batch_size: int, precision: Precision
    ) -> None:
        self.ways = ways
        self._data, self._batch_size, self._precision = data, batch_size, precision

    def measure(self, seconds: float, rounds: int) -> list[Mode]:
        """Every way for about ``seconds`` in each round."""
        for name in self.ways:
            self.train(name, WARM_UP_STEPS)
        steps = {}
        for name, way in self.ways.items():
            wanted = seconds * self.train(name, PACE_STEPS) / self._batch_size / way.every
            steps[name] = way.every * max(1, round(wanted))
        speeds: dict[str, list[float]] = {name: [] for name in self.ways}
        for _ in range(rounds):
            for name in self.ways:
                speeds[name].append(self.train(name, steps[name]))
        return [
            Mode(
                name,
                tuple(speeds[name]),
                _quotients(speeds[name], speeds[PLAIN]),
                way.against,
                _quotients(speeds[way.against], speeds[name]),
                way.at_most,
                way.taught,
            )
            for name, way in self.ways.items()
        ]

    def train(self, name: str, steps: int) -> float:
        """Images per second over this many steps."""
        way = self.ways[name]
        epoch_steps = len(self._data.train) // self._batch_size
        config = Training(
            epochs=steps / epoch_steps,
            batch_size=self._batch_size,
            lr=0.01,
            checkpoint_every_s=1e9,
            log_every_steps=10**9,
        )
        with tempfile.TemporaryDirectory() as scratch, fused_adds(way.network):
            result = fit(
                way.network,
                way.objective,
                self._data,
                config,
                _Nowhere(Path(scratch)),
                seed=0,
                precision=self._precision,
                validate=lambda network: {},
            )
        return result.images_per_s


def _quotients(over: list[float], under: list[float]) -> tuple[float, ...]:
    """Round by round."""
    pairs = zip(over, under, strict=True)
    return tuple(one / two if two else math.nan for one, two in pairs)


class _Nowhere:
    """A training context without a display whose checkpoints nobody keeps."""

    progress = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scratch(self, key: str) -> Path:
        return self._folder
