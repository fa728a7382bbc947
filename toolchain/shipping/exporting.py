"""Teacher and student as ONNX files, one graph for each target, proved equal to their networks and packed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from deploy.bundle import write_bundle
from deploy.errors import MissingDependency, VerificationError
from deploy.sessions.ort import OrtCpuSession
from deploy.targets import PORTABLE, Target
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from exporters.ort_graph import kernel_report
from exporters.proof.verify import FLOAT32, INT8, Tolerance, Verification, verify
from toolchain import checkpoint
from toolchain.checkpoint import Spec
from toolchain.data.batches import evaluation_batches
from toolchain.data.samples import Data, Split
from toolchain.proof.rounding import allowed_by_rounding, kept_in_float64, sentence
from toolchain.quantization.lowering import lower
from toolchain.quantization.settled.settling import settle
from toolchain.recipe.files import portable
from toolchain.runs.artifacts import installed_versions
from toolchain.student import data_of
from toolchain.training.evaluation import predict_logits
from toolchain.training.precision import Precision
from toolchain.training.progress import duration

if TYPE_CHECKING:
    from toolchain.runs.artifacts import Artifact, RunContext
    from toolchain.stages import Export

BUNDLE, STUDENT = "bundle", "student"
# What a runtime computes is compared with torch in float32, whatever precision trained it.
EXACT = Precision("float32", "cpu", "the reference of an export")
# Float operators in place of integer kernels compute what torch does, but for ties and their order.
SIMULATED = Tolerance(decisions=0.999, points=0.1)

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


def numpy_batches(
    data: Data, split: Split, size: int = 500
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for images_BCHW, labels_B in evaluation_batches(split, data.preprocess, size):
        yield images_BCHW.numpy(), labels_B.numpy()


@dataclass(frozen=True)
class Samples:
    """What a file is compared on.

    Attributes:
        batches: Inputs float32 [B, C, H, W] with labels [B], anew at each call.
        predict: The logits of a network for all of them, [N, K].
    """

    batches: Callable[[], Batches]
    predict: Callable[[fx.GraphModule], np.ndarray]

    @classmethod
    def of_validation(cls, data: Data) -> Samples:
        def predict(network: fx.GraphModule) -> np.ndarray:
            return predict_logits(network, data.validation, data.preprocess, EXACT).numpy()

        return cls(lambda: numpy_batches(data, data.validation), predict)


@dataclass(frozen=True)
class TargetGraph:
    """The student's file for one target, and what was proved of it.

    Attributes:
        student: The file against the student as it was trained.
        grid: The file against the student on the target's grid, where that is another one.
        importer: What NVIDIA's importer said; None for a target that has none.
        notes: Sentences for a report.
    """

    target: Target
    path: Path
    student: Verification
    grid: Verification | None
    importer: dict[str, Any] | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "student": json_record(self.student),
            "grid": None if self.grid is None else json_record(self.grid),
            "importer": self.importer,
            "size_bytes": self.path.stat().st_size,
        }


def json_record(check: Verification) -> dict[str, Any]:
    """The check as JSON, which has neither infinity nor NaN."""
    record = json.loads(json.dumps(check.to_dict()), parse_constant=lambda _: None)
    assert isinstance(record, dict)
    return record


def write_graph(
    network: fx.GraphModule, target: Target, example: Tensor, path: Path, facts: Mapping[str, str]
) -> Path:
    """Lower ``network`` for ``target`` and write it as one ONNX file that holds ``facts``."""
    return export_onnx(
        lower(network, target),
        example,
        path,
        metadata={**facts, "target": target},
        float16=target == "tensorrt-fp16",
    )


def prove_graph(
    network: fx.GraphModule, spec: Spec, target: Target, path: Path, samples: Samples
) -> TargetGraph:
    """Compare the file with the student; show it to NVIDIA's importer where that is installed.

    A graph for ``ort-cpu`` runs as it will; others run in ONNX Runtime with float operators.

    Raises:
        VerificationError: The file disagrees with the network, or the importer refuses it.
    """
    quantized = spec.quantization is not None
    same_grid = (
        spec.quantization is None
        or target == "ort-cpu"
        or spec.quantization.unsigned_steps <= PORTABLE
    )
    allowed = SIMULATED if quantized else FLOAT32
    if target == "tensorrt-fp16" or (target == "ort-cpu" and quantized):
        allowed = INT8
    notes = []

    def proved(
        session: OrtCpuSession, reference: fx.GraphModule, allowed: Tolerance
    ) -> Verification:
        check = verify(samples.predict(reference), session, samples.batches(), allowed)
        if not check and allowed is SIMULATED:
            kept = kept_in_float64(reference, samples.batches())
            check = allowed_by_rounding(check, kept)
            if check:
                notes.append(sentence(target, kept))
        return check.require()

    session = OrtCpuSession(
        path, threads=torch.get_num_threads(), disable_fusion=target != "ort-cpu"
    )
    try:
        grid = None if same_grid else proved(session, lower(network, target), allowed)
        student = proved(session, network, allowed if same_grid else INT8)
    finally:
        session.close()
    if not same_grid:
        notes.append(
            f"{target}: the student was trained with {spec.quantization.unsigned_steps} steps "  # type: ignore[union-attr]
            f"above zero and this target has {PORTABLE}, so {1 - student.decisions:.2%} of its "
            f"decisions are others; with target: [ort-cpu, {target}] in the recipe it is trained "
            "on a grid that both have"
        )
    importer = None
    if target != "ort-cpu":
        importer, note = _shown_to_importer(target, path)
        notes += [note] if note else []
    return TargetGraph(target, path, student, grid, importer, tuple(notes))


def _proved(name: str, proof: TargetGraph, times: Sequence[float]) -> str:
    """A line on a file, ``times`` being before it was written, after that, and after it was proved."""
    written_s, proved_s = (after - before for before, after in pairwise(times))
    return (
        f"{name}: {proof.path.stat().st_size:,} bytes, written in {duration(written_s)}; "
        f"{proof.student.decisions:.2%} of {proof.student.rows:,} decisions are the network's, proved in "
        f"{duration(proved_s)}"
    )


def _shown_to_importer(target: Target, path: Path) -> tuple[dict[str, Any], str | None]:
    from deploy.engines.importer import import_onnx

    try:
        answer = import_onnx(path)
    except MissingDependency as absent:
        note = f"{target}: NVIDIA's importer has not seen the graph, because it is not installed"
        return {"accepted": None, "because": str(absent)}, note
    if not answer:
        raise VerificationError(
            f"{path.name}: {answer.parser} refuses the graph: "
            f"{'; '.join(map(str, answer.problems))}; accepted is a graph it can import; name the "
            "layer under keep_float"
        )
    record = {"accepted": True, "parser": answer.parser, "warnings": list(answer.warnings)}
    return record, None


def export(config: Export, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
    """Write both networks as ONNX, prove them, and pack the student's bundle.

    There is a graph for ``ort-cpu`` whatever the targets: it is what this machine can measure.

    Raises:
        VerificationError: A file disagrees with its network.
    """
    data, recipe = data_of(ctx), ctx.recipe
    student, spec = checkpoint.load(source.root)
    teacher, teacher_spec = checkpoint.load(source.find("teacher").root)
    settled = settle(student)
    if settled.moved:
        ctx.say(str(settled))
    example, samples = _example(data), Samples.of_validation(data)
    work = ctx.scratch("onnx")
    checkpoint.save(student, spec, work / STUDENT)
    facts = {"producer": "compress-deploy", "recipe": recipe.name}
    times = [time.monotonic()]
    teacher_onnx = write_graph(teacher, "ort-cpu", example, work / "teacher.onnx", facts)
    times.append(time.monotonic())
    proofs = {"teacher": prove_graph(teacher, teacher_spec, "ort-cpu", teacher_onnx, samples)}
    ctx.say(_proved("teacher", proofs["teacher"], [*times, time.monotonic()]))
    targets: dict[Target, None] = dict.fromkeys(("ort-cpu", *recipe.targets))
    for target in targets:
        times = [time.monotonic()]
        path = write_graph(student, target, example, work / f"{target}.onnx", facts)
        times.append(time.monotonic())
        if config.static_int8 is None:
            proofs[target] = prove_graph(student, spec, target, path, samples)
        else:
            quantized = work / f"static-{target}.onnx"
            proofs[target] = statically_quantized(
                config, samples.predict(student), target, path, quantized, data, ctx.seed
            )
        ctx.say(_proved(target, proofs[target], [*times, time.monotonic()]))
    files: dict[str, Path] = {target: proofs[target].path for target in targets}
    kernels = kernel_report(files["ort-cpu"])
    if spec.quantization is None and config.static_int8 is None:  # one reason for all of them
        notes = [
            "the student is float, as no stage of the recipe quantizes it: every layer runs so"
        ]
    else:
        notes = kernels.notes()
    notes += [note for target in targets for note in proofs[target].notes]
    for line in notes:
        ctx.say(line)
    images_u8, outputs = recorded_samples(files["ort-cpu"], data, config.samples, ctx.seed)
    weights = {f"{STUDENT}/{path.name}": path for path in (work / STUDENT).iterdir()}
    write_bundle(
        out / BUNDLE,
        name=recipe.name,
        targets=files,
        input_name=INPUT,
        input_shape=data.input_shape,
        output_name=OUTPUT,
        classes=data.classes,
        mean=data.preprocess.mean,
        std=data.preprocess.std,
        sample_inputs=images_u8,
        sample_outputs=outputs,
        recipe=portable(recipe),
        seeds={"run": ctx.seed, "split": recipe.data.split_seed},
        versions=installed_versions(),
        files={"teacher.onnx": teacher_onnx, **weights},
        details={
            "verified": {
                "teacher": json_record(proofs["teacher"].student),
                "student": json_record(proofs["ort-cpu"].student),
            },
            "targets": {target: proofs[target].to_dict() for target in targets},
            "kernels": kernels.to_dict(),
            "data_fingerprint": data.fingerprint,
        },
    )
    (out / "notes.json").write_text(json.dumps(notes))
    ctx.say(
        f"ort-cpu: {len(kernels.integer)} layers on integer kernels, "
        f"{len(kernels.float)} on float ones"
    )
    return {
        "decisions_equal": proofs["ort-cpu"].student.decisions,
        "validation_points": proofs["ort-cpu"].student.points,
        "integer_layers": float(len(kernels.integer)),
        "float_layers": float(len(kernels.float)),
    } | {
        f"decisions_equal_{target}": proofs[target].student.decisions
        for target in targets
        if target != "ort-cpu"
    }


def _example(data: Data) -> Tensor:
    images_BCHW, _ = next(evaluation_batches(data.validation, data.preprocess, 2))
    return images_BCHW if len(images_BCHW) > 1 else images_BCHW.repeat(2, 1, 1, 1)


def recorded_samples(
    path: Path, data: Data, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Some validation images as raw uint8, and what the file answers to them."""
    order_N = torch.randperm(len(data.validation), generator=torch.Generator().manual_seed(seed))
    images_u8 = data.validation.images(order_N[:count]).contiguous()
    session = OrtCpuSession(path)
    try:
        images = data.preprocess.normalize(images_u8).contiguous().numpy()
        source, target = session.inputs[0].name, session.outputs[0].name
        return images_u8.numpy(), session.run({source: images})[target]
    finally:
        session.close()


def _calibration_batches(config: Export, data: Data, seed: int) -> Iterator[np.ndarray]:
    """Training images for static calibration, normalized and not augmented, in batches."""
    order_N = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    part = data.train.part(order_N[: config.calibration_images])
    return (images for images, _ in numpy_batches(data, part, 64))


def statically_quantized(
    config: Export,
    reference_NC: np.ndarray,
    target: Target,
    float_onnx: Path,
    path: Path,
    data: Data,
    seed: int,
) -> TargetGraph:
    """The float file quantized to ``path`` without training, and how much that changes, without a verdict.

    ``reference_NC`` holds the logits of the float network for the validation part.
    """
    from exporters.calibration.static_int8 import static_int8

    assert config.static_int8 is not None
    assert target != "tensorrt-fp16", "a recipe refuses the two together"
    static_int8(
        float_onnx,
        _calibration_batches(config, data, seed),
        path,
        method=config.static_int8,
        grid=target,
    )
    importer, note = (None, None) if target == "ort-cpu" else _shown_to_importer(target, path)
    session = OrtCpuSession(
        path, threads=torch.get_num_threads(), disable_fusion=target != "ort-cpu"
    )
    try:
        loss = verify(reference_NC, session, numpy_batches(data, data.validation), INT8)
    finally:
        session.close()
    return TargetGraph(target, path, loss, None, importer, (note,) if note else ())
