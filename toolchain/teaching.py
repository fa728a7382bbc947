"""How a student is taught: by labels, by the pretrained teacher, by its own pruned weights, under masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deploy.errors import StructureError
from toolchain.data.batches import evaluation_batches
from toolchain.data.drawing import Drawing
from toolchain.data.partition import hold_out
from toolchain.data.samples import Data, Split
from toolchain.dean.building import build_sparsifier
from toolchain.dean.objective import PruningByAdmm
from toolchain.distillation.building import recovery_objective
from toolchain.distillation.config import Distil
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.controllers.sparsifier import Sparsifier
from toolchain.distillation.lessons import Draw, School
from toolchain.distillation.objective import DistillationObjective
from toolchain.distillation.teachers.build import build_teachers
from toolchain.distillation.teachers.in_network import InNetworkTeacher
from toolchain.distillation.terms import Term
from toolchain.pqk import ChannelPruner, PruningObjective, TwoNetworks, WeightPruner, learn_alone
from toolchain.quantization import kernels
from toolchain.quantization.attached import attach_teacher_norms
from toolchain.quantization.residual_kernels import fused_adds
from toolchain.structure.masks import HeldStill
from toolchain.training.loop import fit
from toolchain.training.objective import Batch, Objective
from toolchain.training.optimizers import learning_rate, quantizer_scales, warmup_steps

if TYPE_CHECKING:
    from toolchain.stages import DdslPrune, PqkDistil, PqkPrune
    from toolchain.student import Student
    from toolchain.training.config import Training

# Compiled quantizer kernels cost tens of seconds once; below this many images eager ones are done first.
WORTH_COMPILING_IMAGES = 50_000


@dataclass(frozen=True)
class Course:
    """What a training stage minimizes, and on what.

    Attributes:
        objective: Built on the student.
        data: The student's, without what a controller keeps for itself.
        distilling: Its part that follows teachers, if it has one.
    """

    objective: Objective
    data: Data
    distilling: DistillationObjective | None = None


def recovery(
    student: Student,
    distil: Distil | None,
    config: Training,
    *,
    regrow: bool = False,
    sparsifier: Sparsifier | None = None,
) -> Course:
    """Labels, and the terms of the recipe's teachers; masked weights stay where they are."""
    school, data = _school(student, distil, config)
    school = replace(school, sparsifier=sparsifier)
    held = HeldStill(student.network)
    guard = None if regrow or not student.spec.masked else lambda: held.only("important")
    quantization = student.spec.quantization
    bits = float(quantization.bits if quantization else 32)
    objective = recovery_objective(
        school,
        build_teachers(distil.teachers, student) if distil else None,
        distil or Distil(),
        _two_images(student),
        samples=len(data.train),
        scales=quantizer_scales(student.network),
        guard=guard,
        status=lambda: {"bits": bits},
    )
    return Course(objective, data, objective)


def pruning(student: Student, config: PqkPrune, pruner: ChannelPruner | WeightPruner) -> Course:
    """Phase 1: labels (and the recipe's teachers) under masks that follow the ramp."""
    base = recovery(student, config.distil, config, regrow=config.regrow)
    objective = PruningObjective(
        student.network,
        base.objective,
        pruner,
        bits=config.bits,
        ramp=(config.ramp_start, config.ramp_end),
        every=config.mask_every_steps,
    )
    return replace(base, objective=objective)


def pruning_by_admm(student: Student, config: DdslPrune) -> Course:
    """DDSL: labels and the recipe's teachers, drawn to a sparse copy, under a dean's strengths."""
    pruner = student.channel_pruner(config.sparsity)
    student.precision.place(student.network)
    structure = student.ctx.recipe.structure
    sparsifier = build_sparsifier(
        student.network,
        student.decision,
        structure,
        rho=config.rho,
        dual_step=config.dual_step,
        budget=config.budget,
    )
    base = recovery(student, config.distil, config, sparsifier=sparsifier)

    def step_size(step: int, total_steps: int) -> float:
        """The learning rate; for SGD what a constant gradient moves in a step, momentum counted in."""
        gain = 1 / (1 - config.momentum) if config.optimizer == "sgd" else 1.0
        warmup = warmup_steps(config, round(total_steps / config.epochs), total_steps)
        return config.lr * gain * learning_rate(step, total_steps, warmup)

    objective = PruningByAdmm(
        student.network,
        base.objective,
        sparsifier,
        pruner.keep,
        step_size=step_size,
        every=config.z_every_steps,
        fixed_from=config.fixed_from,
        say=student.ctx.say,
    )
    return replace(base, objective=objective)


def two_networks(student: Student, config: PqkDistil) -> Course:
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
    school, data = _school(student, config.pretrained, config)
    made: list[DistillationObjective] = []

    def learn(school: School, term: Term, strength: float, **options: Any) -> DistillationObjective:
        """The in-network teacher's term beside those of the recipe, under its controller."""
        distil = config.pretrained
        if distil is None:
            made.append(learn_alone(school, term, strength, **options))
        else:
            made.append(
                recovery_objective(
                    school,
                    build_teachers(
                        distil.teachers,
                        student,
                        in_network=InNetworkTeacher(
                            student.network, student.precision, follows=True, moved_elsewhere=True
                        ),
                    ),
                    distil.model_copy(update={"task_strength": 1 - strength}),
                    _two_images(student),
                    samples=len(data.train),
                    further=[(term, strength)],
                    **options,
                )
            )
        return made[0]

    objective = TwoNetworks(
        student.network,
        strength=config.strength,
        temperature=config.temperature,
        mutual=config.mutual,
        teacher_updates=config.teacher_updates,
        quantize_teacher=config.quantize_teacher,
        school=school,
        learn=learn,
    )
    return Course(objective, data, made[0])


def train(student: Student, course: Course, config: Training, out: Path) -> None:
    """Run the training loop on ``student``; its log, and what its controller learned, go to ``out``."""
    objective = course.objective
    images = config.epochs * len(course.data.train)
    if student.spec.quantization is not None and student.precision.name == "bf16":
        compiled = kernels.use_compiled(images >= WORTH_COMPILING_IMAGES)
        if images >= WORTH_COMPILING_IMAGES and not compiled:
            student.ctx.say("quantizer kernels: eager, because no C++ compiler was found")
    with fused_adds(student.network):
        fit(
            student.network,
            objective,
            course.data,
            config,
            student.ctx,
            seed=student.ctx.seed,
            precision=student.precision,
            out=out,
        )
    student.network.cpu()
    if course.distilling is not None:
        course.distilling.controller.keep(out)
    if isinstance(objective, PruningObjective | PruningByAdmm):
        objective.finish()
        student.settle()


def _school(student: Student, distil: Distil | None, config: Training) -> tuple[School, Data]:
    """What a controller may know, and the data that is left to train on."""
    student.precision.place(student.network)
    data, held_out = student.data, None
    if distil is not None:
        entry = CONTROLLERS.look_up(distil.controller)
        entry.check(distil.controller_options)
        if entry.held_out:
            share = entry.held_out_share(distil.controller_options)
            data, part = hold_out(data, share, student.ctx.seed)
            held_out = draw(student, part, "held out", trained=False)
    school = School(
        student.network,
        student.precision,
        label_smoothing=config.label_smoothing,
        held_out=held_out,
        probe=draw(student, data.train, "probe"),
        seed=student.ctx.seed,
        say=student.ctx.say,
    )
    return school, data


def draw(student: Student, split: Split, purpose: str, *, trained: bool = True) -> Draw:
    """Batches of a part on the student's device; with their positions if that part is ``trained`` on."""
    device = student.precision.device
    drawing = Drawing(split, student.data.preprocess, student.ctx.seed, purpose, device)

    def draw(number: int, size: int) -> Batch:
        images_BCHW, labels_B, index_B = drawing(number, size)
        known_B = index_B if trained else None
        return Batch(student.precision.images(images_BCHW), labels_B, known_B)

    return draw


def _two_images(student: Student) -> Tensor:
    """A small batch on the device, for the shapes at the spots."""
    images_BCHW, *_ = next(evaluation_batches(student.data.validation, student.data.preprocess, 2))
    return student.precision.images(images_BCHW)
