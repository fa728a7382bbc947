"""The end of the chain: teacher and student as files, proved equal to their networks, packed and measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from benchmarks import accuracy, environment, latency
from benchmarks.report import build_report, goal_rows, goals_met, summary_rows, write_report
from deploy.bundle import Bundle, write_bundle
from deploy.sessions.ort import OrtCpuSession
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from exporters.ort_graph import kernel_report
from exporters.verify import FLOAT32, INT8, Verification, verify
from toolchain import checkpoint
from toolchain.data.batches import evaluation_batches
from toolchain.data.samples import Data, Split
from toolchain.quantization.lowering import lower
from toolchain.runs.artifacts import installed_versions
from toolchain.student import data_of
from toolchain.training.evaluation import predict_logits
from toolchain.training.precision import Precision

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.runs.artifacts import Artifact, RunContext
    from toolchain.stages import Export, Report

# What a runtime computes is compared with torch in float32, whatever precision trained it.
EXACT = Precision("float32", "cpu", "the reference of an export")
REPORT, BUNDLE = "report", "bundle"


def portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON with the names of files where it had their paths on this machine.

    What the files held is told by the fingerprints and weights that go with it.
    """
    record = recipe.model_dump(mode="json")
    model, data = record["model"], record["data"]
    for section, key in ((model, "file"), (model, "checkpoint"), (data, "root")):
        if section.get(key) is not None:
            section[key] = Path(section[key]).name
    return record


def _numpy_batches(
    data: Data, split: Split, size: int = 500
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for images_BCHW, labels_B in evaluation_batches(split, data.preprocess, size):
        yield images_BCHW.numpy(), labels_B.numpy()


def _example(data: Data) -> torch.Tensor:
    images_BCHW, _ = next(evaluation_batches(data.validation, data.preprocess, 2))
    return images_BCHW if len(images_BCHW) > 1 else images_BCHW.repeat(2, 1, 1, 1)


def _verified(network: fx.GraphModule, path: Path, data: Data, *, quantized: bool) -> Verification:
    """The file against its network on the validation part: decisions and top-1."""
    reference_NC = predict_logits(network, data.validation, data.preprocess, EXACT).numpy()
    session = OrtCpuSession(path, threads=torch.get_num_threads())
    try:
        return verify(
            reference_NC,
            session,
            _numpy_batches(data, data.validation),
            INT8 if quantized else FLOAT32,
        ).require()
    finally:
        session.close()


def export(config: Export, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
    """Write both networks as ONNX, prove them, and pack the student's bundle.

    Raises:
        VerificationError: A file disagrees with its network.
    """
    data, recipe = data_of(ctx), ctx.recipe
    student, spec = checkpoint.load(source.root)
    teacher, _ = checkpoint.load(source.find("teacher").root)
    example = _example(data)
    work = ctx.scratch("onnx")
    facts = {"producer": "compress-deploy", "recipe": recipe.name, "target": recipe.target}
    teacher_onnx = export_onnx(lower(teacher), example, work / "teacher.onnx", metadata=facts)
    student_onnx = export_onnx(lower(student), example, work / "student.onnx", metadata=facts)
    checks = {"teacher": _verified(teacher, teacher_onnx, data, quantized=False)}
    if config.static_int8 is not None:
        student_onnx = _statically_quantized(config, student_onnx, data, ctx)
        checks["student"] = _measured_loss(student, student_onnx, data)
    else:
        checks["student"] = _verified(
            student, student_onnx, data, quantized=spec.quantization is not None
        )
    kernels = kernel_report(student_onnx)
    notes = kernels.notes()
    for line in notes:
        ctx.say(line)
    order_N = torch.randperm(
        len(data.validation), generator=torch.Generator().manual_seed(ctx.seed)
    )
    images_u8 = data.validation.images(order_N[: config.samples]).contiguous().numpy()
    session = OrtCpuSession(student_onnx)
    outputs = session.run(
        {INPUT: data.preprocess.normalize(torch.from_numpy(images_u8)).contiguous().numpy()}
    )[OUTPUT]
    session.close()
    weights = {
        f"student/{path.name}": path
        for path in source.root.iterdir()
        if path.name in ("spec.json", "model.safetensors", checkpoint.SOURCE_FILE)
    }
    write_bundle(
        out / BUNDLE,
        name=recipe.name,
        targets={recipe.target: student_onnx},
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
            "verified": {who: check.to_dict() for who, check in checks.items()},
            "kernels": kernels.to_dict(),
            "data_fingerprint": data.fingerprint,
        },
    )
    (out / "notes.json").write_text(json.dumps(notes))
    ctx.say(
        f"{recipe.target}: {checks['student'].decisions:.2%} of decisions equal torch's, "
        f"{len(kernels.integer)} layers on integer kernels, {len(kernels.float)} on float ones"
    )
    return {
        "decisions_equal": checks["student"].decisions,
        "validation_points": checks["student"].points,
        "integer_layers": float(len(kernels.integer)),
        "float_layers": float(len(kernels.float)),
    }


def _statically_quantized(config: Export, float_onnx: Path, data: Data, ctx: RunContext) -> Path:
    from exporters.static_int8 import static_int8

    generator = torch.Generator().manual_seed(ctx.seed)
    order_N = torch.randperm(len(data.train), generator=generator)[: config.calibration_images]
    part = data.train.part(order_N)
    assert config.static_int8 is not None
    return static_int8(
        float_onnx,
        (images for images, _ in _numpy_batches(data, part, 64)),
        float_onnx.with_name("static.onnx"),
        method=config.static_int8,
    )


def _measured_loss(network: fx.GraphModule, path: Path, data: Data) -> Verification:
    """Post-training quantization changes what the float student computes: how much, without a verdict."""
    reference_NC = predict_logits(network, data.validation, data.preprocess, EXACT).numpy()
    session = OrtCpuSession(path, threads=torch.get_num_threads())
    try:
        return verify(reference_NC, session, _numpy_batches(data, data.validation), INT8)
    finally:
        session.close()


def report(config: Report, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
    """Test both files as shipped, time them interleaved, and write the report."""
    data, recipe = data_of(ctx), ctx.recipe
    shutil.copytree(source.root / BUNDLE, out / BUNDLE)
    bundle = Bundle.open(out / BUNDLE)
    files = {"teacher": out / BUNDLE / "teacher.onnx", "student": bundle.model_path(recipe.target)}
    bundle.verify_samples(OrtCpuSession(files["student"])).require()
    top1 = {}
    for who, path in files.items():
        session = OrtCpuSession(path, threads=torch.get_num_threads())
        top1[who] = accuracy.evaluate(session, _numpy_batches(data, data.test)).top1
        session.close()
    images_u8, _ = bundle.samples()
    sessions = {who: OrtCpuSession(path, threads=1) for who, path in files.items()}
    times = latency.measure_interleaved(
        sessions,
        {INPUT: bundle.preprocess(images_u8[:1])},
        at_least_s=config.latency_s,
        at_least=config.latency_runs,
    )
    for session in sessions.values():
        session.close()
    sizes = {"teacher": source.find("teacher").metrics, "student": _last_measured(source)}
    numbers: dict[str, dict[str, Any]] = {
        who: {
            "top1": top1[who],
            "parameters": int(sizes[who]["parameters"]),
            "macs": int(sizes[who]["macs"]),
            "size_bytes": path.stat().st_size,
            "latency_ms": times[who].to_dict(),
            "onnx": path.relative_to(out).as_posix(),
        }
        for who, path in files.items()
    }
    stages = [json.loads((made.root / "artifact.json").read_text()) for made in source.lineage()]
    made = build_report(
        name=recipe.name,
        seed=ctx.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher=numbers["teacher"],
        student=numbers["student"],
        goals=recipe.goals.model_dump(exclude_none=True),
        stages=[
            {
                "name": record["stage"],
                "seconds": record["seconds"],
                "metrics": record["metrics"],
                "config": record["config"],
            }
            for record in reversed(stages)
        ],
        environment=environment.record(),
        notes=json.loads((source.root / "notes.json").read_text()),
        method=[
            f"top-1: the files as shipped, on the {len(data.test)} test images, which nothing before "
            "this stage has read",
            f"latency: ONNX Runtime, one thread, batch 1, teacher and student in alternating blocks of "
            f"one run, at least {config.latency_s:g} s and {config.latency_runs} runs each",
            "MACs: multiplications of convolutions and linear layers of the network, one image",
            "bytes: the ONNX file",
        ],
        versions=installed_versions(),
        bundle=BUNDLE,
        data_fingerprint=data.fingerprint,
        recipe=portable(recipe),
    )
    write_report(made, out)
    return {"top1": numbers["student"]["top1"], "top1_teacher": numbers["teacher"]["top1"]}


def _last_measured(artifact: Artifact) -> Mapping[str, float]:
    """Numbers of the last stage that changed the network."""
    return next(made.metrics for made in artifact.lineage() if "macs" in made.metrics)


def present(last: Artifact, recipe: Recipe, out: Path, allow_missed: bool) -> int:
    """Lay the report out in ``out/<name>-<key>``, print the table, and return the exit status."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if last.stage != "report":
        console.print(f"{recipe.name}: the chain ends with {last.stage}: {last.root}")
        return 0
    folder = out / f"{recipe.name}-{last.key[:8]}"
    if not folder.exists():
        scratch = out / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(last.root, scratch, ignore=shutil.ignore_patterns("artifact.json"))
        _collect_logs(last, scratch)
        scratch.rename(folder)
    record: dict[str, Any] = json.loads((folder / "report.json").read_text())
    table = Table(title=f"{recipe.name} (seed {record['seed']})", title_justify="left")
    for column, justify in (
        ("", "left"),
        ("teacher", "right"),
        ("student", "right"),
        ("change", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in summary_rows(record):
        table.add_row(*row)
    console.print(table)
    for row in goal_rows(record):
        console.print("  ".join(row), highlight=False)
    console.print(
        f"bundle  {folder / BUNDLE}\nreport  {folder / 'report.md'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if allow_missed or goals_met(record) else 1


def _collect_logs(last: Artifact, folder: Path) -> None:
    """Training logs of every stage beside the report."""
    for made in last.lineage():
        for log in made.root.glob("*.metrics.jsonl"):
            (folder / "logs").mkdir(exist_ok=True)
            shutil.copyfile(log, folder / "logs" / f"{made.stage}-{made.key[:8]}.jsonl")
