"""A teacher that exists only as an ONNX file: read, checked and measured; quantized without training.

For people who have no PyTorch code. The chain is teacher -> export -> report: calibration images set the
grids of ONNX Runtime's static quantization, and everything after it is as for any other student.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import accuracy
from deploy.bundle import write_bundle
from deploy.errors import DataError
from deploy.sessions.ort import OrtCpuSession
from deploy.targets import Target
from exporters import onnx_file
from exporters.lint.linting import lint
from exporters.onnx_cost import onnx_cost
from exporters.ort_graph import kernel_report
from toolchain.recipe.files import portable
from toolchain.runs.artifacts import installed_versions
from toolchain.shipping.exporting import (
    BUNDLE,
    json_record,
    numpy_batches,
    recorded_samples,
    statically_quantized,
)
from toolchain.student import data_of

if TYPE_CHECKING:
    from toolchain.data.samples import Data
    from toolchain.runs.artifacts import Artifact, RunContext
    from toolchain.stages import Export

MODEL = "model.onnx"
CONSTANTS_IR = 4  # the first whose initializers need not be inputs
BEFORE_QUANTIZATION = ("FILE-", "OP-", "SHAPE-", "TYPE-")  # families of the linter's rules


def import_onnx_teacher(out: Path, ctx: RunContext) -> dict[str, float]:
    """Copy the recipe's ONNX file to ``out`` as one file with a free batch; measure it.

    Raises:
        StorageError: The file cannot be read, or not be run by ONNX Runtime.
        DataError: ONNX Runtime has no such operator or opset, or the model does not take the data's
            images, or not any number of them, or gives other classes.
    """
    import onnx

    data, given = data_of(ctx), ctx.recipe.model.onnx
    assert given is not None
    model = onnx_file.load(given)
    _require_runnable(given)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise DataError(
            f"model.onnx: {given.name} has {len(inputs)} inputs and {len(model.graph.output)} outputs; "
            "accepted is one of each, images to logits; export the part of it that is a classifier"
        )
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise DataError(
            f"model.onnx: {given.name} is quantized already; accepted is a float file; look at this one "
            "with compress-deploy lint, and quantize the file it was made from"
        )
    for value in (*inputs, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = "batch"
    del model.graph.value_info[:]  # may repeat the batch that it was exported with
    if len(inputs) < len(model.graph.input):
        # Weights that are inputs too could be fed, so no runtime folds them and no tool quantizes them.
        kept = [value.SerializeToString() for value in inputs]
        del model.graph.input[:]
        for value in kept:
            model.graph.input.add().ParseFromString(value)
        model.ir_version = max(model.ir_version, CONSTANTS_IR)
    out.mkdir(parents=True, exist_ok=True)
    path = out / MODEL
    onnx.save(model, path)
    _check_takes(path, given.name, data)
    session = OrtCpuSession(path, threads=torch.get_num_threads(), name=given.name)
    try:
        found = accuracy.evaluate(session, numpy_batches(data, data.validation))
    finally:
        session.close()
    if found.top1 < 2 * 100 / len(data.classes):
        ctx.say(
            f"model.onnx: top-1 is {found.top1:.1f} % with {len(data.classes)} classes, which is next to "
            "guessing; data.preprocess may not be what the network was trained with"
        )
    cost = onnx_cost(path)
    return {
        "validation_top1": found.top1,
        "parameters": float(cost.parameters),
        "macs": float(cost.macs),
    }


def _require_runnable(path: Path) -> None:
    """Nothing, if ONNX Runtime reads a graph like this: its own refusal names neither file nor remedy."""
    for finding in lint(path, "ort-cpu"):
        if finding.level == "error" and finding.rule.startswith(BEFORE_QUANTIZATION):
            where = f"{finding.node}: " if finding.node else ""
            raise DataError(f"model.onnx: {path.name}: {where}{finding.message}; {finding.remedy}")


def _check_takes(path: Path, name: str, data: Data) -> None:
    """Two images at once, and each alone, have to give the same logits of the data's classes."""
    images = next(iter(numpy_batches(data, data.validation, 2)))[0]
    session = OrtCpuSession(path, name=name)
    try:
        source, target = session.inputs[0], session.outputs[0]
        if source.shape[1:] != tuple(data.input_shape):
            raise DataError(
                f"model.onnx: {name} takes {list(source.shape)} and the data's images are "
                f"{list(data.input_shape)}; accepted is equal sizes; set data.image_size"
            )
        both = session.run({source.name: images})[target.name]
        alone = [session.run({source.name: one[None]})[target.name] for one in images]
    except OSError as error:  # DeviceError: the runtime refused the inputs
        raise DataError(
            f"model.onnx: {name} does not run on {len(images)} images at once ({error}); accepted is a model "
            "whose batch is free; export it with a dynamic first axis"
        ) from error
    finally:
        session.close()
    if both.ndim != 2 or both.shape[1] != len(data.classes):
        raise DataError(
            f"model.onnx: {name} gives an output of shape {list(both.shape)} for {len(images)} images and "
            f"the data has {len(data.classes)} classes; accepted is [batch, {len(data.classes)}]"
        )
    if not np.isfinite(both).all():
        raise DataError(
            f"model.onnx: {name} gives NaN or infinity for images of the validation part; accepted are "
            "finite logits; look for weights that are not finite, and at data.preprocess"
        )
    if not np.allclose(both, np.concatenate(alone), rtol=1e-3, atol=1e-4):
        raise DataError(
            f"model.onnx: {name} answers an image differently when others go with it; accepted is a model "
            "in inference mode; export it with its batch norms fixed"
        )


def export_onnx_teacher(
    config: Export, source: Artifact, out: Path, ctx: RunContext
) -> dict[str, float]:
    """Quantize the float file for each target, measure what that changes, and pack the bundle."""
    data, recipe = data_of(ctx), ctx.recipe
    float_onnx, work = source.root / MODEL, ctx.scratch("onnx")
    reference = OrtCpuSession(float_onnx, threads=torch.get_num_threads(), name="teacher")
    try:
        teacher_NC = accuracy.evaluate(reference, numpy_batches(data, data.validation)).logits_NC
        input_name, output_name = reference.inputs[0].name, reference.outputs[0].name
    finally:
        reference.close()
    targets: dict[Target, None] = dict.fromkeys(("ort-cpu", *recipe.targets))
    graphs = {
        target: statically_quantized(
            config, teacher_NC, target, float_onnx, work / f"{target}.onnx", data, ctx.seed
        )
        for target in targets
    }
    kernels = kernel_report(graphs["ort-cpu"].path)
    notes = [
        f"quantized without training, by static calibration ({config.static_int8}) on "
        f"{config.calibration_images} training images",
        *kernels.notes(),
        *(note for graph in graphs.values() for note in graph.notes),
    ]
    for line in notes:
        ctx.say(line)
    images_u8, outputs = recorded_samples(graphs["ort-cpu"].path, data, config.samples, ctx.seed)
    write_bundle(
        out / BUNDLE,
        name=recipe.name,
        targets={target: graph.path for target, graph in graphs.items()},
        input_name=input_name,
        input_shape=data.input_shape,
        output_name=output_name,
        classes=data.classes,
        mean=data.preprocess.mean,
        std=data.preprocess.std,
        sample_inputs=images_u8,
        sample_outputs=outputs,
        recipe=portable(recipe),
        seeds={"run": ctx.seed, "split": recipe.data.split_seed},
        versions=installed_versions(),
        files={"teacher.onnx": float_onnx},
        details={
            "verified": {"student": json_record(graphs["ort-cpu"].student)},
            "targets": {target: graph.to_dict() for target, graph in graphs.items()},
            "kernels": kernels.to_dict(),
            "data_fingerprint": data.fingerprint,
        },
    )
    (out / "notes.json").write_text(json.dumps(notes))
    for target, graph in graphs.items():
        ctx.say(f"{target}: {graph.student.decisions:.2%} of decisions equal the float file's")
    loss = graphs["ort-cpu"].student
    return {
        "decisions_equal": loss.decisions,
        "validation_points": loss.points,
        "integer_layers": float(len(kernels.integer)),
        "float_layers": float(len(kernels.float)),
    }
