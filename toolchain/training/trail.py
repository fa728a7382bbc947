"""What an objective decided at every step, kept until it can be written without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from toolchain.training.metrics_log import MetricsLog
from toolchain.training.tally import read


class Trail:
    """Records of the steps since the log last got them."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, bool]] = []
        self._noted: list[dict[str, float | Tensor]] = []

    def note(self, step: int, numbers: Mapping[str, float | Tensor], *, events: bool) -> None:
        """Keep a step's numbers as they are now; none are no record.

        ``events`` is as in ``MetricsLog.write_trail``.
        """
        if numbers:
            self._steps.append((step, events))
            self._noted.append(
                {
                    name: value.detach().clone().reshape(()) if isinstance(value, Tensor) else value
                    for name, value in numbers.items()
                }
            )

    def write(self, log: MetricsLog) -> None:
        """Hand over what was noted, in order; waits for the device once."""
        steps, noted = self._steps, self._noted
        self._steps, self._noted = [], []
        for (step, events), numbers in zip(steps, read(noted), strict=True):
            log.write_trail(step, numbers, events=events)
