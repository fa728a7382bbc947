"""Activation quantizers: modules that stand where a value is made and put it on an 8-bit grid.

    after a ReLU   y = s . clip(round(x / s), 0, min(2^bits - 1, steps))         unsigned
    elsewhere      y = s . clip(round(x / s), -2^(bits-1), 2^(bits-1) - 1)       signed, zero point 0

The unsigned clip *is* the ReLU, so the quantizer takes the ReLU's place in the graph; a ReLU6 is an
unsigned quantizer whose largest value never exceeds 6. In the teacher's and the latent view only the
plain nonlinearity remains. Where the student shall run on targets without unsigned integers, ``steps``
is 127: what is trained is then on a grid that all of them have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.targets import WIDE
from toolchain.quantization import kernels
from toolchain.quantization.kernels import FakeQuantize, Grid
from toolchain.quantization.views import View, Viewed
from toolchain.quantization.weight_kernels import TINY
from toolchain.quantization.weights import QuantizerKind

Nonlinearity = Literal["none", "relu", "relu6"]
CEILING = 6.0


class ActivationQuantizer(Viewed):
    """Per-tensor fake quantizer of one value, with the nonlinearity it has absorbed.

    Attributes:
        scale: Step size; a parameter (``lsq``) or a buffer that follows the range (``minmax``).
        signed: Whether the grid has negative values.
        high: The largest integer, as a float.
        bypass: Set where the value is on another quantizer's grid already because the branch that
            was added to it is masked; the nonlinearity then changes nothing either.
    """

    scale: Tensor
    bypass: Tensor

    def __init__(
        self,
        absorbs: Nonlinearity,
        signed: bool,
        bits: int = 8,
        kind: QuantizerKind = "lsq",
        momentum: float = 0.01,
        steps: int = WIDE,
    ) -> None:
        super().__init__()
        self.absorbs, self.signed, self.bits, self.kind = absorbs, signed, bits, kind
        self.momentum = momentum
        self.low = float(-(2 ** (bits - 1))) if signed else 0.0
        self.high = float(2 ** (bits - 1) - 1 if signed else min(2**bits - 1, steps))
        if kind == "lsq":
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("scale", torch.ones(()))
        self.register_buffer("bypass", torch.zeros((), dtype=torch.bool))
        self.bypassed = False  # mirrors the buffer, so that a forward pass never waits for a device
        self._observed: list[Tensor] | None = None

    def plain(self, x: Tensor) -> Tensor:
        """The nonlinearity alone."""
        if self.absorbs == "relu":
            return F.relu(x)
        return F.relu6(x) if self.absorbs == "relu6" else x

    def step(self) -> Tensor:
        """The positive step in use: a ReLU6's grid ends at or below 6."""
        scale = self.scale.abs().clamp_min(TINY)
        return scale.clamp_max(CEILING / self.high) if self.absorbs == "relu6" else scale

    def set_bypass(self, on: bool) -> None:
        self.bypassed = on
        self.bypass.fill_(on)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.bypassed = bool(self.bypass)

    def forward(self, x: Tensor) -> Tensor:
        if self.view is not View.STUDENT:
            return self.plain(x)
        if self.bypassed:  # nothing of it is left in the slim network, nor in its gradient
            return x
        if self._observed is not None:
            self._observed.append(_sample(self.plain(x)))
            return self.plain(x)
        if self.follows():
            self.follow(kernels.widest(x.detach(), self.grid))
        return FakeQuantize.apply(x, self.step(), self.grid)

    @property
    def grid(self) -> Grid:
        """The integers that values are clipped to."""
        return Grid(self.low, self.high)

    def quantizes(self) -> bool:
        """Whether a forward pass now puts values on the grid, and does nothing else."""
        return self.view is View.STUDENT and not self.bypassed and self._observed is None

    def follows(self) -> bool:
        """Whether a forward pass now moves the step towards the range that it sees."""
        return self.kind == "minmax" and self.training

    @torch.no_grad()
    def follow(self, widest: Tensor) -> None:
        """Move the step towards the one whose grid ends at ``widest``."""
        seen = (widest.to(self.scale.dtype) / self.high).clamp_min(TINY)
        self.scale.lerp_(seen, self.momentum)

    @torch.no_grad()
    def calibrate(self, values: Tensor, method: Literal["mse", "max"] = "mse") -> None:
        """Set the step from sampled values: the widest, or the range with the least squared error."""
        values = values.to(self.scale.dtype)
        widest = values.abs().max().clamp_min(TINY)
        if method == "max":
            self.scale.copy_(widest / self.high)
            return
        best, least = widest / self.high, float("inf")
        for share in torch.linspace(0.2, 1.0, 41).tolist():
            scale = share * widest / self.high
            got = (values / scale).round().clamp(self.low, self.high) * scale
            error = float((got - values).square().mean())
            if error < least:
                best, least = scale, error
        self.scale.copy_(best)

    def extra_repr(self) -> str:
        return f"absorbs={self.absorbs}, signed={self.signed}, bits={self.bits}, kind={self.kind}"


def _sample(x: Tensor, most: int = 65536) -> Tensor:
    """At most ``most`` values of ``x`` at an even spacing, and its two extreme ones."""
    flat = x.detach().flatten()
    part = flat[:: -(-flat.numel() // most)]
    return torch.cat([part, flat.min()[None], flat.max()[None]])


@contextmanager
def observing(network: nn.Module, method: Literal["mse", "max"] = "mse") -> Iterator[None]:
    """Inside the block quantizers let values through and watch them; at its end they are calibrated."""
    quantizers = [m for m in network.modules() if isinstance(m, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer._observed = []
    try:
        yield
        for quantizer in quantizers:
            if quantizer._observed:
                quantizer.calibrate(torch.cat(quantizer._observed), method)
    finally:
        for quantizer in quantizers:
            quantizer._observed = None
