"""An exponential moving average of a network's weights.

avg <- d avg + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), so that the first steps count.
BatchNorm statistics are averaged too; other buffers (masks, counters) are facts, not estimates, and
keep their last value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Follows the trainable weights of ``network``.

    Attributes:
        tensors: The averages, in the order of the network's parameters and BatchNorm statistics.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._live = averaged_tensors(network)
        self._decay = decay
        self.tensors = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after ``step`` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.tensors, self._live, step)

    @torch.no_grad()
    def copy_into_network(self) -> None:
        """Replace the network's weights by their averages."""
        for live, average in zip(self._live, self.tensors, strict=True):
            live.copy_(average)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """The network has its averages inside, and its own weights back afterwards."""
        own = [tensor.clone() for tensor in self._live]
        self.copy_into_network()
        try:
            yield
        finally:
            with torch.no_grad():
                for live, tensor in zip(self._live, own, strict=True):
                    live.copy_(tensor)

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Restore saved averages."""
        for average, saved in zip(self.tensors, tensors, strict=True):
            average.copy_(saved)


def averaged_tensors(network: nn.Module) -> list[Tensor]:
    """What is averaged of a network: trainable parameters, then BatchNorm statistics; not copied."""
    live = [p.detach() for p in network.parameters() if p.requires_grad]
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            live += [module.running_mean, module.running_var]
    return live
