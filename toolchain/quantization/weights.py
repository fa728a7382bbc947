"""Weight views: latent weight -> mask -> fake quantizer, as one torch parametrization.

    student   Q(M . W)          mask first, so that a pruned weight is exactly 0 on any grid
    teacher   Q(M . W) + (1 - M) . W   or, with ``quantize_teacher``,   Q(W)
    latent    W

    LSQ       w = s . round(clip(W / s, -Q, Q)),  Q = 2^(bits-1) - 1,  s learned per output channel,
              with the step's gradient scaled by 1 / sqrt(n . Q)
              (Esser et al. 2020, https://arxiv.org/abs/1902.08153, equations 1 to 3, section 2.2)
    min-max   s = max|M . W| / Q  of each output channel, straight-through

The grid is symmetric and leaves out -2^(bits-1): 0 maps to 0, and folding a negative batch-norm factor
is a change of sign. Suffixes: O output channels, I input channels, X the axes that remain.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from toolchain.quantization import kernels, weight_kernels
from toolchain.quantization.views import View, Viewed
from toolchain.quantization.weight_kernels import HAIR, TINY

QuantizerKind = Literal["lsq", "minmax"]


class _LearnedStep(torch.autograd.Function):
    """LSQ for one weight; clipped values pass their gradient to the step alone."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, w_OX: Tensor, scale_OX: Tensor, q_max: int
    ) -> Tensor:
        v_OX = w_OX / scale_OX
        q_OX = v_OX.round().clamp_(-q_max, q_max)
        ctx.save_for_backward(v_OX, q_OX)
        ctx.q_max = q_max  # type: ignore[attr-defined]
        return q_OX * scale_OX

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        grad_OX: Tensor,
    ) -> tuple[Tensor, Tensor, None]:
        v_OX, q_OX = ctx.saved_tensors  # type: ignore[attr-defined]
        # The largest weight divided by its share of itself is the largest integer or a hair above.
        inside_OX = v_OX.abs() <= ctx.q_max * (1 + HAIR)  # type: ignore[attr-defined]
        step_OX = torch.where(inside_OX, q_OX - v_OX, q_OX) * grad_OX
        rest = tuple(range(1, grad_OX.dim()))
        steps = max(grad_OX[0].numel() * ctx.q_max, 1)  # type: ignore[attr-defined]
        step_O = step_OX.sum(rest, keepdim=True) / steps**0.5
        return grad_OX * inside_OX, step_O, None


class WeightQuantizer(nn.Module):
    """Symmetric fake quantizer of a weight with the output channels first.

    Attributes:
        bits: 2 to 8.
        scale_O: Step size of each output channel; a parameter (``lsq``) or a buffer (``minmax``).
    """

    scale_O: Tensor

    def __init__(self, channels: int, bits: int = 8, kind: QuantizerKind = "lsq") -> None:
        super().__init__()
        self.bits, self.kind = bits, kind
        self.q_max = 2 ** (bits - 1) - 1
        if kind == "lsq":
            self.scale_O = nn.Parameter(torch.ones(channels))
        else:
            self.register_buffer("scale_O", torch.ones(channels))

    @torch.no_grad()
    def calibrate(self, w_OX: Tensor) -> None:
        """Set each step to the one with the least squared error among shares of the channel's range.

        Channels that are all zero (masked) get a step of 1, which no product can turn into a NaN.
        """
        flat_OX = w_OX.flatten(1)
        widest_O = flat_OX.abs().amax(1)
        best_O = (widest_O / self.q_max).clone()
        if (
            self.kind == "lsq" and self.bits < 8
        ):  # at 8 bits the full range is always within 2% of best
            error_O = torch.full_like(widest_O, float("inf"))
            for share in torch.linspace(0.3, 1.0, 36).tolist():
                scale_O = (share * widest_O / self.q_max).clamp_min(TINY)
                got_OX = (flat_OX / scale_O[:, None]).round().clamp(-self.q_max, self.q_max)
                squared_O = (got_OX * scale_O[:, None] - flat_OX).square().sum(1)
                better_O = squared_O < error_O
                best_O = torch.where(better_O, scale_O, best_O)
                error_O = torch.where(better_O, squared_O, error_O)
        self.scale_O.copy_(torch.where(widest_O > 0, best_O, torch.ones_like(best_O)))

    def steps(self, w_OX: Tensor) -> Tensor:
        """Positive step of each output channel, shaped to broadcast over ``w_OX``."""
        scale_O = self.scale_O
        if self.kind == "minmax":
            widest_O = w_OX.detach().flatten(1).abs().amax(1) / self.q_max
            scale_O = torch.where(widest_O > 0, widest_O, torch.ones_like(widest_O))
            self.scale_O.copy_(scale_O)
        # A step that an update carried past zero is as good as its positive twin, and still learns.
        return scale_O.abs().clamp_min(TINY).view(-1, *[1] * (w_OX.dim() - 1))

    def forward(self, w_OX: Tensor) -> Tensor:
        return _LearnedStep.apply(w_OX, self.steps(w_OX), self.q_max)

    @torch.no_grad()
    def integers(self, w_OX: Tensor) -> tuple[Tensor, Tensor]:
        """The int8 weight and its positive steps [O]: what an export stores."""
        scale_OX = self.steps(w_OX)
        q_OX = (w_OX / scale_OX).round().clamp(-self.q_max, self.q_max)
        return q_OX.to(torch.int8), scale_OX.flatten()


class WeightView(Viewed):
    """The transform of one weight: its masks, its quantizer, and how each view sees it.

    Attributes:
        keep_O, keep_I: Channels that the student keeps (bool).
        keep_OX: Single weights that the student keeps, or None for channel masks only.
        quantizer: None until `attach_weight_quantizers`.
        quantize_teacher: Whether the teacher's extra weights go through the quantizer as well.
        route_teacher: Whether the teacher's gradient stops at the weights that the student keeps.
    """

    keep_O: Tensor
    keep_I: Tensor
    keep_OX: Tensor | None

    def __init__(self, weight_OX: Tensor, out_dim: int, has_inputs: bool, elements: bool) -> None:
        super().__init__()
        self.out_dim, self.has_inputs = out_dim, has_inputs
        self.register_buffer("keep_O", torch.ones(weight_OX.shape[out_dim], dtype=torch.bool))
        inputs = weight_OX.shape[1 - out_dim] if has_inputs else 1
        self.register_buffer("keep_I", torch.ones(inputs, dtype=torch.bool))
        keep_OX = torch.ones_like(weight_OX, dtype=torch.bool) if elements else None
        self.register_buffer("keep_OX", keep_OX)
        self.quantizer: WeightQuantizer | None = None
        self.quantize_teacher = False
        self.route_teacher = True

    def mask(self) -> Tensor:
        """True where the student keeps the weight; broadcasts over the weight."""
        ndim = 2 if self.keep_OX is None else self.keep_OX.dim()
        shape_O, shape_I = [1] * ndim, [1] * ndim
        shape_O[self.out_dim], shape_I[1 - self.out_dim] = -1, -1
        mask = self.keep_O.view(shape_O) & self.keep_I.view(shape_I)
        return mask if self.keep_OX is None else mask & self.keep_OX

    def _mask_like(self, weight: Tensor) -> Tensor:
        mask = self.mask()
        return mask.view(*mask.shape, *[1] * (weight.dim() - mask.dim()))

    def _quantize(self, weight: Tensor) -> Tensor:
        if self.quantizer is None:
            return weight
        if self.out_dim == 0:
            return self.quantizer(weight)
        return self.quantizer(weight.transpose(0, 1)).transpose(0, 1).contiguous()

    def _fused(self, weight: Tensor) -> bool:
        """Whether one compiled kernel does all of `forward`."""
        return (
            kernels.compiling(weight)
            and self.quantizer is not None
            and self.out_dim == 0
            and self.keep_OX is None
            and (self.view is View.STUDENT or (self.route_teacher and not self.quantize_teacher))
            and weight_kernels.fits(weight)
        )

    def _fused_forward(self, weight: Tensor) -> Tensor:
        assert self.quantizer is not None
        quantizer, learned = self.quantizer, self.quantizer.kind == "lsq"
        seen, scale_O = weight_kernels.QuantizeWeight.apply(
            weight,
            self.keep_O,
            self.keep_I,
            quantizer.scale_O,
            float(quantizer.q_max),
            learned,
            self.view is View.TEACHER,
        )
        if not learned:
            quantizer.scale_O.copy_(scale_O)
        return seen

    def forward(self, weight: Tensor) -> Tensor:
        if self.view is View.LATENT:
            return weight
        if self._fused(weight):
            return self._fused_forward(weight)
        mask = self._mask_like(weight)
        if self.view is View.STUDENT:
            return self._quantize(weight * mask)
        if self.quantize_teacher:
            quantized = self._quantize(weight)
            return (
                torch.where(mask, quantized.detach(), quantized)
                if self.route_teacher
                else quantized
            )
        important = self._quantize(weight * mask)
        if self.route_teacher:
            important = important.detach()
        return torch.where(mask, important, weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight
