"""Networks that a recipe names, checked against the data and written down: the teacher, and new students."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from deploy.errors import CompressDeployError, ConfigError, DataError
from toolchain import checkpoint
from toolchain.checkpoint import Spec
from toolchain.graph import trace
from toolchain.models.source import build_model
from toolchain.models.weights import load_weights
from toolchain.student import Student, data_of

if TYPE_CHECKING:
    from toolchain.recipe.network import NetworkOrigin
    from toolchain.recipe.schema import ModelConfig
    from toolchain.runs.artifacts import Artifact, RunContext


def import_teacher(out: Path, ctx: RunContext) -> dict[str, float]:
    """Build, load, trace, check and measure the recipe's model; write it to ``out``.

    Raises:
        DataError: Its logits do not match the data's classes, or it does not take the data's images.
    """
    data = data_of(ctx)
    if data.skipped:
        ctx.say(f"data: {len(data.skipped)} corrupt samples skipped, first {data.skipped[0]}")
    return _start(ctx.recipe.model, "model", None, out, ctx)


def start_student(
    origin: NetworkOrigin, source: Artifact, out: Path, ctx: RunContext
) -> dict[str, float]:
    """The same for a network that is taught by the teacher and is not its copy.

    Raises:
        DataError: As ``import_teacher``.
    """
    return _start(origin, "student", source, out, ctx)


def build_network(origin: ModelConfig | NetworkOrigin, where: str, seed: int) -> fx.GraphModule:
    """The network with its weights, traced, in eval mode; without a checkpoint the seed draws them.

    Args:
        where: Its place in the recipe, for messages.

    Raises:
        ConfigError: The name, the file or the arguments are not usable.
        CheckpointError: The weights do not fit.
        StructureError: ``forward`` cannot be traced.
    """
    with _told_of(where):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain = build_model(origin, Path())
        if origin.checkpoint is not None:
            load_weights(plain, origin.checkpoint)
        return trace(plain).eval()


def logits_width(network: fx.GraphModule, input_shape: Sequence[int], where: str) -> int:
    """How many classes the network tells apart.

    Raises:
        DataError: It does not take such images, or gives something else than [batch, classes].
    """
    with torch.no_grad():
        try:
            logits_BC = network(torch.zeros(2, *input_shape))
        except (RuntimeError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{where}: does not take images of shape {tuple(input_shape)} ({reason}); accepted is "
                f"what the data holds; change {where}.args or data.image_size"
            ) from error
    if not isinstance(logits_BC, Tensor):
        raise DataError(
            f"{where}: gives a {type(logits_BC).__name__}; accepted is one tensor [batch, classes]; wrap the "
            "network in a module that gives logits"
        )
    if logits_BC.dim() != 2 or len(logits_BC) != 2:
        raise DataError(
            f"{where}: gives an output of shape {tuple(logits_BC.shape)} for 2 images; accepted is "
            "[batch, classes]; wrap the network in a module that gives logits"
        )
    return int(logits_BC.shape[1])


def _start(
    origin: ModelConfig | NetworkOrigin,
    where: str,
    source: Artifact | None,
    out: Path,
    ctx: RunContext,
) -> dict[str, float]:
    data = data_of(ctx)
    network = build_network(origin, where, ctx.seed)
    given = logits_width(network, data.input_shape, where)
    if given != len(data.classes):
        raise DataError(
            f"{where}: gives an output of shape (2, {given}) for 2 images and the data has "
            f"{len(data.classes)} classes; accepted is [batch, {len(data.classes)}]; change "
            f"{where}.args or the data"
        )
    file = None
    if origin.file is not None:
        path, _, builder = origin.file.rpartition(":")
        file = f"{Path(path).resolve()}:{builder}"
    spec = Spec(origin.builtin, file, dict(origin.args), data.input_shape, data.classes)
    student = Student(network, spec, ctx, source)
    if source is None:
        ctx.say(str(student.precision))
    numbers = student.save(out)
    if origin.file is not None:
        _check_travels(out, origin.file, where)
    return numbers


def _check_travels(folder: Path, file: str, where: str) -> None:
    """A user's file is copied along with the weights: it has to work on its own."""
    try:
        checkpoint.load(folder)
    except ConfigError as error:
        raise ConfigError(
            f"{where}.file: {file} does not work without its neighbours ({error.__cause__}); accepted "
            "is one file that imports nothing from its own folder; move what it imports into it"
        ) from error


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Messages of what reads a recipe's ``model`` name the place where the network really stands."""
    try:
        yield
    except CompressDeployError as error:
        if where == "model":
            raise
        fields = r"(?<![\w./-])model(?=: |\.(builtin|file|args|checkpoint)\b)"
        raise type(error)(re.sub(fields, where, str(error))) from error
