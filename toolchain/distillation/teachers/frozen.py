"""A trained network that is never changed: eval mode, no gradient, BatchNorm statistics kept.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toolchain.distillation.spots import LOGITS, capture, require_reached
from toolchain.training.precision import Precision


class FrozenTeacher:
    """A network that stays as it is.

    Args:
        network: Put on the precision's device, and its parameters are frozen.
        precision: Of its forward passes.
    """

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        self.network = precision.place(network).requires_grad_(False).eval()
        self._precision = precision

    def observe(self, images_BCHW: Tensor, spots: Sequence[str] = (LOGITS,)) -> dict[str, Tensor]:
        """What the network computes at ``spots``; detached, in the precision's number format.

        Raises:
            ConfigError: A spot that the network does not have or does not reach.
        """
        self.network.eval()
        # Not inference mode: the student's backward pass has to keep these tensors.
        with torch.no_grad(), self._precision.autocast(), capture(self.network, spots) as found:
            self.network(images_BCHW)
        require_reached(found, spots)
        return found
