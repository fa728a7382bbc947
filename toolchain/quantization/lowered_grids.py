"""The activation grid of a trained quantizer, as each target stores it.

    steps of a value that is never below zero, by what the student was trained for, and its grid

                     255 (`ort-cpu` alone)       127 (`tensorrt` among the targets)
    ort-cpu          uint8, s                    uint8, s, clipped at 127: a uint8 reaches further
    tensorrt         int8, s . 255 / 127         int8, s

    other values: int8, s; for `ort-cpu` the same steps as uint8 with zero point 128

With 127 steps all targets compute the same numbers. With 255 the signed grid ends where the unsigned one
did (a ReLU6's ceiling is still its end), in half as many steps. Zero points of int8 are 0, which is all
that TensorRT takes. The scales of `tensorrt-fp16` are float16 numbers, because its tensors are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploy.errors import StructureError
from deploy.targets import PORTABLE, WIDE, Target
from exporters.qdq_ops import FakeQuantize
from toolchain.quantization.activations import ActivationQuantizer

SIGNED_ZERO_POINT = 128
# A float16 below it has lost more than its last six bits, and far below it is zero.
LEAST_HALF_STEP = 2.0**-20


def fixed_grid(quantizer: ActivationQuantizer, target: Target = "ort-cpu") -> nn.Module:
    """The grid of ``quantizer`` on ``target``, with the nonlinearity it has absorbed.

    Raises:
        StructureError: Its activations have another width than 8 bits.
    """
    if quantizer.bypassed:
        return nn.Identity()
    if quantizer.bits != 8:
        raise StructureError(
            f"export: activations of {quantizer.bits} bits; accepted for {target} is 8; "
            "set activation_bits to 8"
        )
    relu = quantizer.absorbs != "none"  # a ReLU6's ceiling is the top of its grid
    step, top = float(quantizer.step().detach()), int(quantizer.high)
    if target == "ort-cpu":
        zero_point = SIGNED_ZERO_POINT if quantizer.signed else 0
        return FakeQuantize(step, zero_point, False, relu, WIDE if quantizer.signed else top)
    if top == WIDE:
        step = step * WIDE / PORTABLE
    if target == "tensorrt-fp16":
        step = float(half_steps(torch.tensor(step)))
    return FakeQuantize(step, 0, True, relu)


def half_steps(scale: Tensor) -> Tensor:
    """Positive steps as the nearest numbers that float16 has, at least ``LEAST_HALF_STEP``."""
    return scale.clamp_min(LEAST_HALF_STEP).half().to(scale.dtype)
