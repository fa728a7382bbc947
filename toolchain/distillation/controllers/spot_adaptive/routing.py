r"""SAKD's routing network: a student and a teacher cut at the same spots, with a way across at each.

    f_s = S_i(u_s), f_t = T_i(u_t)                           pieces up to spot i; u = the image at first
    u_t = (1 - a_i) H_st(f_s) + a_i f_t                      a_i: 1 the teacher's way, 0 the student's
    u_s = (1 - a_i) f_s + a_i H_ts(f_t)
    z_r = (1 - a_last) z_s + a_last z_t

Song, Chen, Ye, Song 2022, arXiv 2205.02399 (released code). No gradient reaches the weights of either
network, and the student is in eval mode: its BatchNorm buffers stay. The first pieces see the image and
nothing that is learned here: they need no gradient, and the teacher's needs no second pass. Axes: B batch, C
classes or channels, H height, W width, S spots, X positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolchain.distillation.controllers.spot_adaptive.crossings import Crossing
from toolchain.distillation.slices import Slices
from toolchain.training.evaluation import eval_mode


class RoutingNetwork:
    """Mixes the two streams of a batch as a policy decides.

    Args:
        network: The student.
        student: Its pieces; cut at every inner spot, in order of execution.
        teacher: The teacher's, cut at as many.
        across: A ``Crossing`` for each inner spot.
    """

    def __init__(
        self, network: nn.Module, student: Slices, teacher: Slices, across: nn.ModuleList
    ) -> None:
        self._network, self._student, self._teacher = network, student, teacher
        self._across = across

    def logits(self, images_BCHW: Tensor, first: Tensor, a_BS: Tensor) -> Tensor:
        """Routed logits [B, C] in float32.

        Args:
            images_BCHW: The batch.
            first: The teacher's features of these images at the first inner spot, detached.
            a_BS: Ones where a sample takes the teacher's way, else zeros; with its graph.
        """
        with eval_mode(self._network), weights_fixed(self._network):
            with torch.no_grad():
                f_s = self._student.run(images_BCHW, 0, 1)
            f_t = first
            for spot, crossing in enumerate(self._across):
                assert isinstance(crossing, Crossing)
                u_t = mix(crossing.to_teacher(f_s), f_t, a_BS[:, spot])
                u_s = mix(f_s, crossing.to_student(f_t), a_BS[:, spot])
                f_s = self._student.run(u_s, spot + 1, spot + 2)
                f_t = self._teacher.run(u_t, spot + 1, spot + 2)
        return mix(f_s.float(), f_t.float(), a_BS[:, -1])


def mix(student: Tensor, teacher: Tensor, a_B: Tensor) -> Tensor:
    """(1 - a) student + a teacher, exactly one of them where ``a`` is 0 or 1."""
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    a_BX = a_B.to(dtype).reshape(-1, *[1] * (teacher.dim() - 1))
    return torch.lerp(student.to(dtype), teacher.to(dtype), a_BX)


@contextmanager
def weights_fixed(network: nn.Module) -> Iterator[None]:
    """While open, a pass of ``network`` records no way back to its parameters."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
