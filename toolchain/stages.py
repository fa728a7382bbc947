"""The stages of the chain: each is its settings, and one method that reads an artifact and writes one.

    teacher -> pqk-prune -> pqk-distil -> slim -> recover -> export -> report

Importing this module needs neither torch nor numpy: what a stage works with is imported when it runs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from deploy.errors import ConfigError
from toolchain.distillation.config import Distil
from toolchain.distillation.teachings import placed
from toolchain.distillation.versions import changed_methods
from toolchain.recipe.base import Frozen
from toolchain.recipe.files import content_hash
from toolchain.recipe.network import NetworkOrigin
from toolchain.training.config import Training

if TYPE_CHECKING:
    from toolchain.runs.artifacts import Artifact, RunContext

CUT = "cut.json"
MASKING = ("prune", "pqk-prune", "ddsl-prune")
# What is shipped says by which recipe it was made.
SHIPPED = ("name", "model", "data", "precision", "target", "goals", "structure")


class StageModel(Frozen):
    """What every stage has: its name, the recipe's sections it reads, its version."""

    uses: ClassVar[tuple[str, ...]] = ("data", "precision")
    version: ClassVar[int] = 1

    if TYPE_CHECKING:

        @property
        def stage(self) -> str: ...

    def fingerprint(self, ctx: RunContext) -> str:
        """Content of the files that its own settings name, and which of its methods have changed since."""
        return content_hash(self) + changed_methods(self)

    def explain(self, error: ConfigError, position: int) -> ConfigError:
        """The error with the stage's place in front, where it is about what the stage distils."""
        return placed(error, position, self)

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        """Read ``source``, write files into the empty folder ``out``, return metrics."""
        raise TypeError(f"{type(self).__name__} is no stage of a chain")


class Quantizing(Frozen):
    """How weights and activations are quantized."""

    bits: int = Field(8, ge=2, le=8, description="of weights")
    edge_bits: int = Field(8, ge=2, le=8, description="of the first and last layer's weights")
    activation_bits: Literal[8] = 8
    quantizer: Literal["lsq", "minmax"] = "lsq"
    keep_float: list[str] = Field(
        [], description="layers left in float: path or glob, `first`, `last`"
    )
    calibration_images: int = Field(512, ge=1)
    calibration: Literal["mse", "max"] = "mse"


class Teacher(StageModel):
    """Import the pretrained network, check it against the data, and measure it."""

    uses: ClassVar[tuple[str, ...]] = ("model", "data", "precision")
    stage: Literal["teacher"] = "teacher"

    def fingerprint(self, ctx: RunContext) -> str:
        """Content of the checkpoint, the user's source file and the data."""
        from toolchain.student import data_of

        digest = hashlib.sha256(data_of(ctx).fingerprint.encode())
        model = ctx.recipe.model
        source = Path(model.file.rpartition(":")[0]) if model.file else None
        files = [model.checkpoint, model.onnx, source]
        for path in files:
            if path is not None and Path(path).is_file():
                digest.update(Path(path).read_bytes())
        return digest.hexdigest()

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        if ctx.recipe.model.onnx is not None:
            from toolchain.shipping.onnx_teacher import import_onnx_teacher

            return import_onnx_teacher(out, ctx)
        from toolchain.starting import import_teacher

        return import_teacher(out, ctx)


class NewStudent(StageModel, NetworkOrigin):
    """Start a network of another kind, from scratch or from a checkpoint, to be taught by the teacher."""

    stage: Literal["student"] = "student"

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.starting import start_student

        return start_student(self, source, out, ctx)


class Quantize(StageModel, Quantizing):
    """Attach quantizers and set their steps from calibration images; trains nothing."""

    uses: ClassVar[tuple[str, ...]] = ("data", "precision", "target")
    version: ClassVar[int] = 2
    stage: Literal["quantize"] = "quantize"

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student

        student = Student.load(source, ctx)
        student.quantize(self)
        return student.save(out)


class Prune(StageModel):
    """Mask the channels that the recipe's structure says, at once and without training."""

    uses: ClassVar[tuple[str, ...]] = ("data", "precision", "structure", "goals", "target")
    stage: Literal["prune"] = "prune"
    sparsity: float | None = Field(None, ge=0, lt=1, description="instead of the goals")

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student

        student = Student.load(source, ctx)
        student.prune(self.sparsity)
        return student.save(out)


class PqkPrune(StageModel, Training, Quantizing):
    """PQK's phase 1: prune along a cubic ramp while training quantization-aware."""

    uses: ClassVar[tuple[str, ...]] = ("data", "precision", "structure", "goals", "target")
    version: ClassVar[int] = 2
    stage: Literal["pqk-prune"] = "pqk-prune"
    epochs: float = Field(10, gt=0)
    granularity: Literal["channels", "weights"] = "channels"
    sparsity: float | None = Field(None, ge=0, lt=1, description="instead of the goals")
    ramp_start: float = Field(0.0, ge=0, le=1, description="share of the phase")
    ramp_end: float = Field(0.5, ge=0, le=1, description="share of the phase; then masks are fixed")
    mask_every_steps: int = Field(50, ge=1)
    regrow: bool = Field(False, description="let masked weights learn, and come back")
    distil: Distil | None = Field(
        None, description="terms from the pretrained teacher; none: labels"
    )

    @model_validator(mode="after")
    def _ramp_rises(self) -> PqkPrune:
        if self.ramp_start > self.ramp_end:
            raise ValueError(
                f"ramp_start is {self.ramp_start:g} and ramp_end is {self.ramp_end:g}; "
                "accepted: a start that is not behind the end"
            )
        return self

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student
        from toolchain.teaching import pruning, train

        student = Student.load(source, ctx)
        pruner = student.pruner(self.granularity, self.sparsity)
        if student.spec.quantization is None:
            student.quantize(self)
        train(student, pruning(student, self, pruner), self, out)
        return student.save(out)


class DdslPrune(StageModel, Training):
    """DDSL: prune by ADMM while a dean sets how strongly to distil and to sparsify each layer."""

    uses: ClassVar[tuple[str, ...]] = ("data", "precision", "structure", "goals", "target")
    stage: Literal["ddsl-prune"] = "ddsl-prune"
    epochs: float = Field(10, gt=0)
    lr: float = Field(0.05, gt=0)
    sparsity: float | None = Field(None, ge=0, lt=1, description="instead of the goals")
    budget: Literal["projection", "multiplier", "widths"] = Field(
        "projection",
        description="how the goals are met: `projection` at every Z-step, by one price for all layers, and a "
        "dean learns sparsity strengths from a surrogate, because a projection has no derivative of its own; "
        "`multiplier` softly, by a price that follows the size, with exact derivatives; `widths`: those that "
        "the structure decides",
    )
    rho: float = Field(0.1, gt=0, description="of ADMM's penalty")
    dual_step: float = Field(
        0.2, gt=0, le=1, description="of ADMM's dual update; nearer to 1, the choice may swing"
    )
    z_every_steps: int = Field(50, ge=1, description="steps between two Z-steps")
    fixed_from: float = Field(
        0.5, ge=0, le=1, description="share of the stage; then masks are fixed"
    )
    distil: Distil | None = Field(
        Distil(controller="dean"), description="terms from the pretrained teacher; none: labels"
    )

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student
        from toolchain.teaching import pruning_by_admm, train

        student = Student.load(source, ctx)
        train(student, pruning_by_admm(student, self), self, out)
        return student.save(out)


class PqkDistil(StageModel, Training):
    """PQK's phase 2: the pruned weights, put back, make the teacher of the network without them."""

    stage: Literal["pqk-distil"] = "pqk-distil"
    epochs: float = Field(5, gt=0)
    lr: float = Field(0.05, gt=0)
    strength: float = Field(0.5, ge=0, le=1, description="of the in-network teacher's term")
    temperature: float = Field(4.0, gt=0)
    mutual: float = Field(0.0, ge=0, description="strength of the term from student to teacher")
    teacher_updates: Literal["unimportant", "all"] = "unimportant"
    quantize_teacher: bool = False
    pretrained: Distil | None = Field(
        None,
        description="further terms and teachers; its controller sets the strengths of all, the labels' "
        "being 1 - strength whatever its task_strength",
    )

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student
        from toolchain.teaching import train, two_networks

        student = Student.load(source, ctx)
        train(student, two_networks(student, self), self, out)
        return student.save(out)


class Slim(StageModel):
    """Cut the masked channels and branches out, and prove that nothing else changed."""

    stage: Literal["slim"] = "slim"

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student

        student = Student.load(source, ctx)
        difference = student.slim()
        return student.save(out) | {"largest_difference": difference}


class Recover(StageModel, Training):
    """Train on, taught by the pretrained teacher."""

    stage: Literal["recover"] = "recover"
    epochs: float = Field(5, gt=0)
    distil: Distil | None = Field(Distil(), description="terms from the pretrained teacher")

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student
        from toolchain.teaching import recovery, train

        student = Student.load(source, ctx)
        train(student, recovery(student, self.distil, self), self, out)
        return student.save(out)


class Train(StageModel, Training):
    """Train on the labels alone: from scratch, or to fine-tune."""

    stage: Literal["train"] = "train"
    epochs: float = Field(gt=0)

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.student import Student
        from toolchain.teaching import recovery, train

        student = Student.load(source, ctx)
        train(student, recovery(student, None, self), self, out)
        return student.save(out)


class Export(StageModel):
    """Lower for each target, write ONNX, prove it equal, and pack the bundle."""

    uses: ClassVar[tuple[str, ...]] = SHIPPED
    version: ClassVar[int] = 3
    stage: Literal["export"] = "export"
    samples: int = Field(16, ge=1, description="sample inputs in the bundle")
    static_int8: Literal["minmax", "entropy", "percentile", "mse"] | None = Field(
        None, description="quantize a float student with ONNX Runtime's own static quantization"
    )
    calibration_images: int = Field(512, ge=1, description="for static_int8")

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        if ctx.recipe.model.onnx is not None:
            from toolchain.shipping.onnx_teacher import export_onnx_teacher

            return export_onnx_teacher(self, source, out, ctx)
        from toolchain.shipping.exporting import export

        return export(self, source, out, ctx)


class Report(StageModel):
    """Measure teacher and student as shipped, once on the test part, and compare with the goals."""

    uses: ClassVar[tuple[str, ...]] = SHIPPED
    stage: Literal["report"] = "report"
    latency_s: float = Field(3.0, gt=0, description="seconds of timing for each model")
    latency_runs: int = Field(500, ge=10)

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        from toolchain.shipping.reporting import report

        return report(self, source, out, ctx)


STAGES: tuple[type[StageModel], ...] = (
    Teacher,
    NewStudent,
    Quantize,
    Prune,
    PqkPrune,
    DdslPrune,
    PqkDistil,
    Slim,
    Recover,
    Train,
    Export,
    Report,
)
