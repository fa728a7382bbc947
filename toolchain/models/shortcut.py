"""The parameter-free shortcut of the CIFAR ResNets: subsample, then pad with zero channels.

He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385,
section 3.3 (A).  Where each output channel comes from is data, so that channels on either side can
be cut.  Axes: B batch, C or O channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.errors import StructureError


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel; output channel ``o`` is input channel ``source_O[o]`` or zero.

    As constructed, the input channels lie in the middle and the new channels are split evenly
    before and after them.  ``source_O`` is structure and not a weight, so it is not in the
    ``state_dict``; whoever cuts channels assigns a new one, and ``in_channels`` with it.

    Attributes:
        source_O: int64, input channel of each output channel, or -1 for zeros.
    """

    source_O: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise StructureError(
                f"PadShortcut: {in_channels} to {out_channels} channels; "
                "accepted: at least as many outputs as inputs; use the 1 x 1 shortcut instead"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.register_buffer("source_O", None, persistent=False)
        source_O = torch.full((out_channels,), -1)
        before = (out_channels - in_channels) // 2
        source_O[before : before + in_channels] = torch.arange(in_channels)
        self.source_O = source_O

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "source_O":
            # Once per assignment: `forward` must not read the values of a tensor on a device.
            self.out_channels = len(value)
            self._run = _contiguous_run(value.tolist())

    def forward(self, x: Tensor) -> Tensor:
        """``x_BCHW`` to ``[B, O, ceil(H / stride), ceil(W / stride)]``."""
        x = x[:, :, :: self.stride, :: self.stride]
        if self._run is not None:
            first, count, before = self._run
            after = self.out_channels - before - count
            return F.pad(x[:, first : first + count], (0, 0, 0, 0, before, after))
        # One channel of zeros after the last real one is what the sources -1 point to.
        x = F.pad(x, (0, 0, 0, 0, 0, 1))
        source_O = torch.where(self.source_O < 0, self.in_channels, self.source_O)
        return x.index_select(1, source_O)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def _contiguous_run(channels: Sequence[int]) -> tuple[int, int, int] | None:
    """(first input channel, how many, zeros before) if the sources are one run inside zeros.

    >>> _contiguous_run([-1, 3, 4, -1, -1])
    (3, 2, 1)
    >>> _contiguous_run([0, -1, 1]) is None
    True
    """
    real = [position for position, channel in enumerate(channels) if channel >= 0]
    if not real:
        return 0, 0, 0
    before, count = real[0], len(real)
    first = channels[before]
    if list(channels[before : before + count]) != list(range(first, first + count)):
        return None
    return first, count, before
