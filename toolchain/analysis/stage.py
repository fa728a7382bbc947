"""The analysis of a recipe as a stage: kept and resumed like any other, but no part of a chain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from toolchain.data.batches import evaluation_batches
from toolchain.data.partition import hold_out
from toolchain.distillation.config import Distil, DistilLoss
from toolchain.recipe.schema import StageConfig
from toolchain.stages import StageModel
from toolchain.training.config import Training

if TYPE_CHECKING:
    from torch import Tensor

    from toolchain.analysis.probing import Probed
    from toolchain.analysis.record import Analysis
    from toolchain.analysis.sparsities import Damage
    from toolchain.distillation.lessons import School
    from toolchain.runs.artifacts import Artifact, RunContext
    from toolchain.structure.plan import Group
    from toolchain.student import Student

PRETRAINED, BEFORE, AFTER = "of the pretrained network", "before training", "after training"
SPARSITIES = (0.25, 0.5, 0.75)
TIMES = 4  # measurements during training, where nobody says how often
BATCH = 250
LEAST_PROBES, SMALLEST_PROBE = 8, 8


def looked_at(spots: str) -> DistilLoss:
    """The loss by which further spots are looked at: attention maps, taught by nobody."""
    return DistilLoss(loss="at", spot=spots, strength=0.0)


class Analyze(StageModel):
    """Distillability and sparsability of the network that a teaching stage is given."""

    uses: ClassVar[tuple[str, ...]] = ("name", "data", "precision", "structure", "target")
    stage: Literal["analyze"] = "analyze"
    teaching: StageConfig = Field(description="the stage whose distillation is looked at")
    field: str = Field("distil", description="where in it that is said")
    epochs: float = Field(0, ge=0, description="of training; 0: before it only")
    every: int | None = Field(None, ge=1, description="steps between two measurements")
    probes: int = Field(8, ge=1, description="probe batches")
    probe_size: int = Field(128, ge=2, description="images of a probe batch")
    aside: float = Field(
        0, ge=0, lt=1, description="of the training part, never probed: what a controller holds out"
    )
    images: int = Field(1000, ge=0, description="held-out images for sparsability; 0: none")
    spots: str | None = Field(None, description="pattern of further spots to look at, by attention")

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student
        from toolchain.teaching import draw, recovery, train

        student = Student.load(source, ctx)
        distil: Distil = getattr(self.teaching, self.field)
        sparsability = {
            when: found
            for when, network in _untrained(student, source, ctx)
            if (found := self._sparsability(network))
        }
        training = self._training()
        course = recovery(student, distil, training)
        assert course.distilling is not None
        school = self._watching(course.distilling.school, distil, student)
        probed_part = course.data.train
        if self.aside:
            probed_part = hold_out(student.data, self.aside, ctx.seed)[0].train
            school = replace(school, probe=draw(student, probed_part, "probe", trained=False))

        from toolchain.analysis.page import write
        from toolchain.analysis.probing import probe, samples
        from toolchain.analysis.watching import Watched
        from toolchain.runs.training_logs import never, trail_of

        # Of few images smaller batches: an interval needs several, and none that repeats another.
        size = min(self.probe_size, max(SMALLEST_PROBE, len(probed_part) // LEAST_PROBES))
        probes = min(self.probes, max(1, len(probed_part) // size))
        if probes < self.probes:  # further ones would show the same images again
            ctx.say(f"probes: {self.probes} asked; {probes} of {size} images are all there are")

        def measure(step: int) -> Probed:
            ctx.say(f"distillability at step {step:,}")
            return probe(school, step, probes, size)

        if self.epochs == 0:
            watched = Watched(course.objective, 1, measure)
            watched.look(0)
        else:
            steps = round(self.epochs * max(1, len(course.data.train) // training.batch_size))
            every = self.every or max(1, math.ceil(steps / TIMES))
            watched = Watched(course.objective, every, measure)
            train(student, replace(course, objective=watched), training, out)
            student.precision.place(student.network)
            watched.look(max(1, steps))
            if damaged := self._sparsability(student):
                sparsability[AFTER] = damaged
        batches = f"{probes} probe batches of {size} training images, not augmented"
        analysis = self._analysis(ctx, school, student, watched.seen, sparsability, batches)
        logs = sorted(out.glob("*.metrics.jsonl"))
        analysis = replace(analysis, never=[what for log in logs for what in never(trail_of(log))])
        write(analysis, out)
        first, last = (samples(each.layers) for each in (watched.seen[0], watched.seen[-1]))
        return {
            "distillability_first": float(first.mean()) if first.size else 0.0,
            "distillability_last": float(last.mean()) if last.size else 0.0,
        }

    def _training(self) -> Training:
        given = {
            name: getattr(self.teaching, name)
            for name in Training.model_fields
            if hasattr(self.teaching, name)
        }
        return Training(**{**given, "epochs": self.epochs or 1.0, "tensorboard": False})

    def _watching(self, school: School, distil: Distil, student: Student) -> School:
        """The school with further terms that are looked at and never taught."""
        if self.spots is None:
            return school
        from toolchain.distillation.building import build_terms
        from toolchain.distillation.teachers.build import build_teachers

        assert school.probe is not None
        further = build_terms(
            school,
            build_teachers(distil.teachers, student),
            [looked_at(self.spots)],
            school.probe(0, 2).images_BCHW,
        )
        known = {term.name for term in school.terms}
        terms = [*school.terms, *(term for term, _ in further if term.name not in known)]
        return school.with_terms(terms, school.base)

    def _sparsability(self, student: Student) -> list[Damage]:
        """What each group's channels are worth; nothing where masks hide some already."""
        import torch

        from toolchain.analysis.sparsities import damages
        from toolchain.structure.groups import find_groups
        from toolchain.structure.importance import importance, taylor_gradients

        if student.spec.masked or not self.images:
            return []
        structure = student.ctx.recipe.structure
        plain = student._plain()
        data = student.data
        gradients = None
        if structure.importance == "taylor":
            gradients = taylor_gradients(plain, student._task_batches())

        def score(group: Group) -> Tensor:
            return importance(group, plain, structure.importance, gradients)

        def shown(done: int, total: int) -> None:
            if done == total or done % max(1, total // 4) == 0:
                student.ctx.say(f"sparsability: {done} of {total} groups")

        part = data.validation.part(torch.arange(min(self.images, len(data.validation))))
        batches = [
            (images_BCHW, labels_B)
            for images_BCHW, labels_B, *_ in evaluation_batches(part, data.preprocess, BATCH)
        ]
        groups = find_groups(plain, student.spec.input_shape, structure.ignore)
        return damages(plain, groups, score, SPARSITIES, batches, student.precision, shown)

    def _analysis(
        self,
        ctx: RunContext,
        school: School,
        student: Student,
        seen: list[Probed],
        sparsability: dict[str, list[Damage]],
        batches: str,
    ) -> Analysis:
        from toolchain.analysis.record import Analysis

        strengths = {term.name: school.base.get(term.name, 0.0) for term in school.terms}
        distilled = ", ".join(f"{name} at strength {s:g}" for name, s in strengths.items() if s)
        watched = ", ".join(name for name, strength in strengths.items() if not strength)
        masked = "Sparsability of the student was not measured: masks hide channels there already."
        return Analysis(
            recipe=ctx.recipe.name,
            stage=self.teaching.stage,
            seed=ctx.seed,
            seen=seen,
            sparsability=sparsability,
            distilled=distilled + (f"; looked at only: {watched}" if watched else ""),
            probes=batches,
            images=min(self.images, len(student.data.validation)),
            importance=ctx.recipe.structure.importance,
            left_out=masked if student.spec.masked and self.images else "",
        )


def _untrained(
    student: Student, source: Artifact, ctx: RunContext
) -> Iterator[tuple[str, Student]]:
    """The networks whose sparsability is known before training: the whole one, and what it became."""
    if source.stage != "teacher":
        yield PRETRAINED, type(student).load(source.find("teacher"), ctx)
        yield BEFORE, student
    else:
        yield PRETRAINED, student
