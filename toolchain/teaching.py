"""How a student is taught: by labels, by the pretrained teacher, by its own pruned weights, under masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deploy.errors import ConfigError, StructureError
from toolchain.data.batches import evaluation_batches
from toolchain.distillation.config import Distil
from toolchain.distillation.spots import LOGITS
from toolchain.distillation.terms import build_terms, recovery_objective
from toolchain.pqk import ChannelPruner, PruningObjective, TwoNetworks, WeightPruner
from toolchain.quantization import kernels
from toolchain.quantization.attached import attach_teacher_norms
from toolchain.quantization.residual_kernels import fused_adds
from toolchain.structure.masks import HeldStill
from toolchain.training.loop import fit
from toolchain.training.objective import Batch, Objective
from toolchain.training.optimizers import quantizer_scales

if TYPE_CHECKING:
    from toolchain.stages import PqkDistil, PqkPrune
    from toolchain.student import Student
    from toolchain.training.config import Training

# Compiled quantizer kernels cost tens of seconds once; below this many images eager ones are done first.
WORTH_COMPILING_IMAGES = 50_000


def recovery(
    student: Student, distil: Distil | None, config: Training, *, regrow: bool = False
) -> Objective:
    """Labels, and the pretrained teacher's terms; masked weights stay where they are."""
    student.precision.place(student.network)
    held = HeldStill(student.network)
    guard = None if regrow or not student.spec.masked else lambda: held.only("important")
    quantization = student.spec.quantization
    bits = float(quantization.bits if quantization else 32)
    return recovery_objective(
        student.network,
        student.teacher() if distil else None,
        distil or Distil(),
        _two_images(student),
        label_smoothing=config.label_smoothing,
        scales=quantizer_scales(student.network),
        guard=guard,
        status=lambda: {"bits": bits},
    )


def pruning(
    student: Student, config: PqkPrune, pruner: ChannelPruner | WeightPruner
) -> PruningObjective:
    """Phase 1: labels (and the pretrained teacher) under masks that follow the ramp."""
    return PruningObjective(
        student.network,
        recovery(student, config.distil, config, regrow=config.regrow),
        pruner,
        bits=config.bits,
        ramp=(config.ramp_start, config.ramp_end),
        every=config.mask_every_steps,
    )


def two_networks(student: Student, config: PqkDistil) -> TwoNetworks:
    """Phase 2; the teacher's batch norms are attached here.

    Raises:
        StructureError: Nothing is masked, so there is nothing to make a teacher of.
    """
    if not student.spec.masked:
        raise StructureError(
            "pqk-distil: nothing is masked, so no weights are left for a teacher; accepted is a "
            "network from prune or pqk-prune; put pqk-distil behind one of them, before slim"
        )
    attach_teacher_norms(student.network)
    student.spec = replace(student.spec, teacher_norms=True)
    student.precision.place(student.network)
    extra = None if config.pretrained is None else _logit_terms(student, config.pretrained)
    return TwoNetworks(
        student.network,
        strength=config.strength,
        temperature=config.temperature,
        mutual=config.mutual,
        teacher_updates=config.teacher_updates,
        quantize_teacher=config.quantize_teacher,
        label_smoothing=config.label_smoothing,
        extra=extra,
    )


def train(student: Student, objective: Objective, config: Training, out: Path) -> None:
    """Run the training loop on ``student`` and write its log to ``out``."""
    images = config.epochs * len(student.data.train)
    if student.spec.quantization is not None and student.precision.name == "bf16":
        compiled = kernels.use_compiled(images >= WORTH_COMPILING_IMAGES)
        if images >= WORTH_COMPILING_IMAGES and not compiled:
            student.ctx.say("quantizer kernels: eager, because no C++ compiler was found")
    with fused_adds(student.network):
        fit(
            student.network,
            objective,
            student.data,
            config,
            student.ctx,
            seed=student.ctx.seed,
            precision=student.precision,
            out=out,
        )
    student.network.cpu()
    if isinstance(objective, PruningObjective):
        objective.finish()
        student.settle()


def _two_images(student: Student) -> Tensor:
    """A small batch on the device, for the shapes at the spots."""
    images_BCHW, _ = next(evaluation_batches(student.data.validation, student.data.preprocess, 2))
    return student.precision.images(images_BCHW)


def _logit_terms(student: Student, distil: Distil) -> Callable[[Batch, Tensor], Tensor]:
    """The pretrained teacher's terms on logits, as one function of a batch and student logits."""
    teacher = student.teacher()
    inner = [loss.spot for loss in distil.losses if loss.spot != LOGITS]
    if inner:
        raise ConfigError(
            f"pqk-distil.pretrained: spot {inner[0]!r}; accepted here is 'logits'; "
            "put feature terms into a recover stage"
        )
    terms = build_terms(student.network, teacher, distil, _two_images(student))

    def value(batch: Batch, z_s_BC: Tensor) -> Tensor:
        z_t_BC = teacher.observe(batch.images_BCHW)[LOGITS]
        values = [
            loss.strength * term.value(z_s_BC, z_t_BC, batch.labels_B)
            for term, loss in zip(terms, distil.losses, strict=True)
        ]
        return torch.stack(values).sum()

    return value
