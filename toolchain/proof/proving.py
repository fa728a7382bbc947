"""Prove each target of a bundle: the parity ladder, the kernels, the file against a fresh export.

    ladder     the student in torch, the file with every Q/DQ pair in float, on integer kernels, as an engine
    kernels    every convolution of an int8 file for ONNX Runtime is an integer kernel
    file       holds the constants and nodes that this version writes for the student, or calibrates anew
    samples    this machine answers the bundle's samples as it was recorded

Where one fails, layers are blamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from deploy.bundle import Bundle, SampleCheck
from deploy.errors import ConfigError
from deploy.sessions.ort import OrtCpuSession
from deploy.targets import Target
from exporters import onnx_file
from exporters.blame.graph_diff import Difference, differences
from exporters.blame.graph_layers import GraphLayers
from exporters.ort_graph import KernelReport, Layer, kernel_report
from exporters.proof.engine_rungs import engine_rungs
from exporters.proof.ladder import (
    FUSED,
    INTEGER_KERNELS,
    OTHER_GRID,
    SAME_GRID,
    SIMULATED,
    TORCH,
    Ladder,
    Rung,
    Samples,
    climb,
)
from exporters.proof.ladder import Progress as Report
from exporters.proof.verify import Tolerance
from toolchain.proof.blaming import Blame, blame
from toolchain.proof.calibrated import calibrated_differences
from toolchain.proof.expected import calibrated_again, exported_again
from toolchain.proof.parity import (
    STUDENT,
    TorchSession,
    has_student,
    kept_in_float,
    reload_student,
    same_grid,
)
from toolchain.proof.rounding import allowed_by_rounding, kept_in_float64, sentence
from toolchain.proof.steps import counted
from toolchain.runs.artifacts import installed_versions

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx

    from toolchain.checkpoint import Spec
    from toolchain.training.progress import Progress

# What quantization after training costs is a number to read, not a fault of the export.
NO_VERDICT = Tolerance(decisions=0.0, points=100.0)
LARGEST_BATCH = 64
SELF = "compress-deploy"
EXPORTED = "what the student exports to"
CALIBRATED = "the weights of the float file, and steps that these samples ask for"
GIVEN = "float file"
TORCH_BATCH = 256


@dataclass(frozen=True)
class Student:
    """The network in the bundle, or the reason why there is none."""

    network: fx.GraphModule | None
    spec: Spec | None
    absent: str = ""


@dataclass(frozen=True)
class Proof:
    """What is known about one target; truthy when nothing failed.

    Attributes:
        kernels: What ONNX Runtime executes, for ``ort-cpu``.
        int8: Whether the file is quantized, so that kernels have to be integer.
        changed: How the file differs from a fresh export, or None with ``not_compared`` why.
        recorded: The bundle's samples on this machine, for ``ort-cpu``.
        kept: Nodes that were left in float on request.
        other_version: That wrote the file; what it did otherwise than this one is no fault.
        expected: What the file was compared with, in words.
        notes: What was allowed for, one sentence each.
        blame: Layers, where something failed.
    """

    target: Target
    ladder: Ladder
    kernels: KernelReport | None
    int8: bool
    changed: tuple[Difference, ...] | None
    not_compared: str
    recorded: SampleCheck | None
    kept: frozenset[str] = frozenset()
    other_version: str = ""
    expected: str = EXPORTED
    notes: tuple[str, ...] = ()
    blame: Blame | None = None

    @property
    def failures(self) -> list[str]:
        """One sentence for each part that failed."""
        said = []
        hop = self.ladder.failed
        if hop is not None and hop.check is not None:
            said.append(
                f"the student is lost between {hop.above} and {hop.below} at batch {hop.batch}: "
                + "; ".join(hop.check.failures())
            )
        elif not self.ladder:
            said.append("nothing was compared")
        left = self.float_convolutions
        if left or (self.int8 and self.kernels is not None and not self.kernels.integer):
            named = ", ".join(layer.name for layer in left[:4]) or "there is no integer kernel"
            said.append(
                f"ONNX Runtime computes {len(left)} convolutions in float: {named}"
                + (", ..." if len(left) > 4 else "")
            )
        if self.changed and not self.other_version:
            said.append(
                f"the file does not hold {self.expected}: {self.changed[0].what}"
                + (f", and {len(self.changed) - 1} more" if len(self.changed) > 1 else "")
            )
        if self.recorded is not None and not self.recorded:
            said.append(
                f"{self.recorded.agreeing} of {self.recorded.rows} samples are decided as recorded"
            )
        return said

    @property
    def float_convolutions(self) -> list[Layer]:
        """Those that nobody asked for."""
        if self.kernels is None or not self.int8:
            return []
        return [each for each in self.kernels.float_convolutions if each.name not in self.kept]

    def __bool__(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "passed": bool(self),
            "failures": self.failures,
            "ladder": self.ladder.to_dict(),
            "kernels": None if self.kernels is None else self.kernels.to_dict(),
            "changed": None if self.changed is None else [asdict(each) for each in self.changed],
            "not_compared": self.not_compared,
            "other_version": self.other_version,
            "notes": list(self.notes),
            "recorded": None if self.recorded is None else asdict(self.recorded),
            "blame": None if self.blame is None else self.blame.to_dict(),
        }


def prove(
    bundle: Bundle,
    targets: Sequence[str],
    samples: Samples,
    progress: Progress,
    *,
    batches: Sequence[int] = (),
    threads: int = 1,
) -> list[Proof]:
    """A proof of each of ``targets``, or of all that the bundle has.

    Raises:
        ConfigError: A batch is below 1.
        DataError: The bundle has no such target, or the samples do not fit it.
        StorageError: A model file is not whole.
        CheckpointError: The student in the bundle cannot be loaded.
    """
    if any(size < 1 for size in batches):
        raise ConfigError(f"--batch: {min(batches)} is given; accepted are 1 and more")
    chosen = [cast(Target, target) for target in targets or bundle.targets]
    models = {target: onnx_file.load(bundle.model_path(target)) for target in chosen}
    students = {
        kept: _student(bundle, kept) for kept in {kept_in_float(model) for model in models.values()}
    }
    proofs = []
    for number, target in enumerate(chosen, 1):
        with progress.stage(target, number, len(chosen)):
            proofs.append(
                _prove(
                    bundle,
                    target,
                    models[target],
                    students[kept_in_float(models[target])],
                    samples,
                    progress,
                    tuple(batches),
                    threads,
                )
            )
    return proofs


def _student(bundle: Bundle, keep_float: tuple[str, ...]) -> Student:
    if not has_student(bundle):
        return Student(None, None, f"the bundle has no {STUDENT}/spec.json to reload it from")
    network, spec = reload_student(bundle, keep_float)
    return Student(network, spec)


def _prove(
    bundle: Bundle,
    target: Target,
    model: ModelProto,
    student: Student,
    samples: Samples,
    progress: Progress,
    batches: tuple[int, ...],
    threads: int,
) -> Proof:
    path = bundle.model_path(target)
    int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    after_training = int8 and student.spec is not None and student.spec.quantization is None
    rungs = _rungs(bundle, target, student, after_training, batches, threads)
    with counted(progress, target) as step:
        ladder, note = _but_for_rounding(
            climb(target, rungs, samples, step), student.network, samples, step
        )
    on_cpu = target == "ort-cpu"
    kernels = kernel_report(path) if on_cpu else None
    recorded = None
    if on_cpu:
        with closing(OrtCpuSession(path, threads)) as session:
            recorded = bundle.verify_samples(session)
    calibrated = after_training or (int8 and _is_of_onnx_file(bundle))
    if calibrated:
        fresh, not_compared = calibrated_again(bundle, target, student.network, samples)
    else:
        fresh, not_compared = exported_again(bundle, target, student.network, student.absent)
    compare = calibrated_differences if calibrated else differences
    changed = None if fresh is None else tuple(compare(fresh, model))
    other = _other_version(bundle, "onnxruntime" if calibrated else None)
    kept = _kept(model, student.spec)
    proof = Proof(
        target,
        ladder,
        kernels,
        int8,
        changed,
        not_compared,
        recorded,
        kept,
        other,
        CALIBRATED if calibrated else EXPORTED,
        (note,) if note else (),
    )
    if proof:
        return proof
    return replace(proof, blame=_blamed(proof, student, model, fresh, samples, progress))


def _but_for_rounding(
    ladder: Ladder, network: fx.GraphModule | None, samples: Samples, step: Report
) -> tuple[Ladder, str]:
    """The ladder, whose hops from torch may lose what the student loses to itself, and a note if they do."""
    hop = ladder.failed
    if network is None or hop is None or hop.check is None or hop.check.allowed is not SAME_GRID:
        return ladder, ""
    kept = kept_in_float64(
        network,
        samples.batches(TORCH_BATCH, samples.rows),
        lambda done: step("student in float64", done, samples.rows),
    )
    hops = [
        replace(each, check=allowed_by_rounding(each.check, kept))
        if each.check is not None and each.check.allowed is SAME_GRID
        else each
        for each in ladder.hops
    ]
    wider = replace(ladder, hops=tuple(hops))
    return wider, "" if wider.failed else sentence(ladder.target, kept)


def _kept(model: ModelProto, spec: Spec | None) -> frozenset[str]:
    """Nodes with float weights, where the student was quantized with layers to be ignored."""
    if spec is None or spec.quantization is None or not spec.quantization.ignore:
        return frozenset()
    layers = GraphLayers(model)
    return frozenset(
        str(node.name or node.output[0])
        for node in layers.weighted()
        if node.input[1] in layers.graph.constants
    )


def _rungs(
    bundle: Bundle,
    target: Target,
    student: Student,
    after_training: bool,
    batches: tuple[int, ...],
    threads: int,
) -> list[Rung]:
    import onnxruntime

    path, spec, network = bundle.model_path(target), student.spec, student.network
    sizes = batches or (1, LARGEST_BATCH)
    here = f"ONNX Runtime {onnxruntime.__version__}"
    own = spec is not None and (spec.quantization is None or same_grid(spec, target))
    grid = NO_VERDICT if after_training else SAME_GRID if own else OTHER_GRID
    opened = partial(OrtCpuSession, path, threads)
    torch_rung = Rung(TORCH, f"torch {torch.__version__}", None, absent=student.absent)
    if network is not None and spec is not None:
        shape, classes = spec.input_shape, len(spec.classes)
        torch_rung = replace(
            torch_rung,
            open=lambda: TorchSession(network, shape, classes),
            batches=(TORCH_BATCH,),
        )
    elif _is_of_onnx_file(
        bundle
    ):  # calibrated, not trained: the file that was given is the reference
        given = partial(OrtCpuSession, bundle.folder / "teacher.onnx", threads)
        torch_rung = Rung(GIVEN, f"{here}, the float file", given, batches=sizes)
        grid = NO_VERDICT
    rungs = [
        torch_rung,
        Rung(SIMULATED, f"{here}, every Q/DQ pair in float", partial(opened, disable_fusion=True),
             grid, sizes),
    ]  # fmt: skip
    if target == "ort-cpu":
        rungs.append(Rung(FUSED, f"{here}, as it ships", opened, INTEGER_KERNELS, sizes))
    return [*rungs, *engine_rungs(bundle, target)]


def _is_of_onnx_file(bundle: Bundle) -> bool:
    """Whether the teacher was an ONNX file, so that there is no student but its quantized copy."""
    return bool(bundle.manifest.get("recipe", {}).get("model", {}).get("onnx"))


def _other_version(bundle: Bundle, quantizer: str | None) -> str:
    """The version that wrote the bundle, of this project or of the quantizer, where it is not this one."""
    wrote, here = bundle.manifest.get("versions", {}), installed_versions()
    if str(wrote.get(SELF, "")) != here[SELF]:
        return str(wrote.get(SELF, ""))
    if quantizer is not None and str(wrote.get(quantizer, "")) != here[quantizer]:
        return f"{quantizer} {wrote.get(quantizer, '')}"
    return ""


def _blamed(
    proof: Proof,
    student: Student,
    model: ModelProto,
    fresh: ModelProto | None,
    samples: Samples,
    progress: Progress,
) -> Blame:
    with counted(progress, "blame") as step:
        return blame(
            proof.target,
            proof.ladder.failed,
            model,
            samples,
            network=student.network,
            fresh=fresh,
            changed=proof.changed or (),
            kernels=proof.kernels,
            progress=step,
        )
