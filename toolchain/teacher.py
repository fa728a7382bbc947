"""The start of the chain: the recipe's pretrained network, checked against the data and written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deploy.errors import ConfigError, DataError
from toolchain import checkpoint
from toolchain.checkpoint import Spec
from toolchain.graph import trace
from toolchain.models.source import build_model
from toolchain.models.weights import load_weights
from toolchain.student import Student, data_of

if TYPE_CHECKING:
    from toolchain.runs.artifacts import RunContext


def import_teacher(out: Path, ctx: RunContext) -> dict[str, float]:
    """Build, load, trace, check and measure the recipe's model; write it to ``out``.

    Raises:
        DataError: Its logits do not match the data's classes, or it does not take the data's images.
    """
    data, model = data_of(ctx), ctx.recipe.model
    if data.skipped:
        ctx.say(f"data: {len(data.skipped)} corrupt samples skipped, first {data.skipped[0]}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.seed)  # where there is no checkpoint, these are the weights
        plain = build_model(model, Path())
    if model.checkpoint is not None:
        load_weights(plain, model.checkpoint)
    network = trace(plain).eval()
    with torch.no_grad():
        try:
            logits_BC = network(torch.zeros(2, *data.input_shape))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"model: does not take images of shape {data.input_shape} ({reason}); accepted is what "
                "the data holds; change model.args or data.image_size"
            ) from error
    if logits_BC.dim() != 2 or logits_BC.shape[1] != len(data.classes):
        raise DataError(
            f"model: gives an output of shape {tuple(logits_BC.shape)} for 2 images and the data has "
            f"{len(data.classes)} classes; accepted is [batch, {len(data.classes)}]; "
            "change model.args or the data"
        )
    file = None
    if model.file is not None:
        path, _, builder = model.file.rpartition(":")
        file = f"{Path(path).resolve()}:{builder}"
    spec = Spec(model.builtin, file, dict(model.args), data.input_shape, data.classes)
    student = Student(network, spec, ctx)
    ctx.say(str(student.precision))
    numbers = student.save(out)
    if model.file is not None:
        _check_travels(out, model.file)
    return numbers


def _check_travels(folder: Path, file: str) -> None:
    """A user's file is copied along with the weights: it has to work on its own."""
    try:
        checkpoint.load(folder)
    except ConfigError as error:
        raise ConfigError(
            f"model.file: {file} does not work without its neighbours ({error.__cause__}); accepted "
            "is one file that imports nothing from its own folder; move what it imports into it"
        ) from error
