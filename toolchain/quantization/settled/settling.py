"""All that is settled, in its order: steps of joined values, multipliers of layers, biases.

Multipliers depend on steps and biases on multipliers. What is settled already does not move.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from toolchain.quantization.settled.biases import settle_biases
from toolchain.quantization.settled.multipliers import settle_multipliers
from toolchain.quantization.settled.steps import settle_steps


@dataclass(frozen=True)
class Settled:
    """How far things moved.

    Attributes:
        steps: Largest relative change of an activation's step.
        multipliers: Largest relative change of a channel's weights.
        biases: Largest shift of a bias, in units of the layer's result.
    """

    steps: float
    multipliers: float
    biases: float

    @property
    def moved(self) -> bool:
        return max(self.steps, self.multipliers, self.biases) > 0

    def __str__(self) -> str:
        return (
            f"settled: channels scaled by at most {self.multipliers:.2%} and steps by {self.steps:.2%}, so "
            "that sums in float and in integers round alike"
        )


def settle(network: fx.GraphModule) -> Settled:
    """Put a quantized student on numbers that all runtimes round alike, in place; a float one stays."""
    return Settled(settle_steps(network), settle_multipliers(network), settle_biases(network))
