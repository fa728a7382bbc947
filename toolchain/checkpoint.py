"""Structure as data: a network on disk is its constructor, its channel plan, and safetensors.

    network = attach(cut(trace(constructor()), plan), quantization, masks, teacher norms) + weights

Nothing is pickled, and reloading needs neither the recipe nor a pruning library. A user's own Python file
travels with the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from deploy.errors import CheckpointError
from toolchain.graph import trace
from toolchain.models.source import build_model
from toolchain.quantization.attach import Quantization, attach_quantizers
from toolchain.quantization.attached import attach_teacher_norms, attach_views
from toolchain.structure.plan import ChannelPlan
from toolchain.structure.slim import cut

FORMAT = 1
SOURCE_FILE = "source.py"


@dataclass(frozen=True)
class Spec:
    """Everything about a network but its weights.

    Attributes:
        builtin: Name of a built-in constructor, or None.
        file: A user's own file, ``net.py:build`` with an absolute path, or None.
        args: Keyword arguments of the constructor.
        input_shape: (C, H, W) of one sample.
        classes: Class names in the order of the logits.
        plan: What is kept of the constructor's network.
        quantization: How it is quantized, or None for float.
        masked: Whether masks are attached (nothing is cut yet that they hide).
        elements: Whether there are masks of single weights.
        teacher_norms: Whether the in-network teacher has its own batch norms.
    """

    builtin: str | None
    file: str | None
    args: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    plan: ChannelPlan = field(default_factory=ChannelPlan)
    quantization: Quantization | None = None
    masked: bool = False
    elements: bool = False
    teacher_norms: bool = False

    def plain(self) -> Spec:
        """The same structure with nothing attached."""
        return replace(self, quantization=None, masked=False, elements=False, teacher_norms=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "builtin": self.builtin,
            "file": self.file,
            "args": dict(self.args),
            "input_shape": list(self.input_shape),
            "classes": list(self.classes),
            "plan": self.plan.to_json(),
            "quantization": self.quantization.to_json() if self.quantization else None,
            "masked": self.masked,
            "elements": self.elements,
            "teacher_norms": self.teacher_norms,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Spec:
        quantization = record["quantization"]
        return cls(
            record["builtin"],
            record["file"],
            record["args"],
            tuple(record["input_shape"]),
            tuple(record["classes"]),
            ChannelPlan.from_json(record["plan"]),
            Quantization.from_json(quantization) if quantization else None,
            record["masked"],
            record["elements"],
            record["teacher_norms"],
        )


def build(spec: Spec) -> fx.GraphModule:
    """The network of ``spec`` with everything attached and weights as the constructor made them."""
    config = SimpleNamespace(
        builtin=spec.builtin, file=spec.file, args=dict(spec.args), checkpoint=None
    )
    network = cut(trace(build_model(config, Path())), spec.plan)  # type: ignore[arg-type]
    if spec.masked:
        attach_views(network, spec.elements)
    if spec.quantization is not None:
        attach_quantizers(network, spec.quantization, spec.input_shape)
    if spec.teacher_norms:
        attach_teacher_norms(network)
    return network


def save(network: fx.GraphModule, spec: Spec, folder: Path) -> None:
    """Write ``spec.json``, ``model.safetensors`` and, for a user's own model, its source file."""
    folder.mkdir(parents=True, exist_ok=True)
    record = spec.to_json()
    if spec.file is not None:
        path, _, builder = spec.file.rpartition(":")
        target = folder / SOURCE_FILE
        if Path(path).resolve() != target.resolve():
            shutil.copyfile(path, target)
        record["file"] = f"{SOURCE_FILE}:{builder}"
        record["source_sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    save_file(_tensors(network), folder / "model.safetensors")
    (folder / "spec.json").write_text(json.dumps(record, indent=1))


def _tensors(network: fx.GraphModule) -> dict[str, Tensor]:
    return {  # copies, because tied tensors share memory and safetensors refuses that
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }


def read_spec(folder: Path) -> Spec:
    """The spec in ``folder``.

    Raises:
        CheckpointError: It is missing, of another format, or its source file was changed.
    """
    path = folder / "spec.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: {error}; accepted is a folder written by compress-deploy; check the path"
        ) from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: format {found!r}; accepted is {FORMAT}; "
            "write the checkpoint again with this version"
        )
    try:
        if record["file"] is not None:
            _check_source(folder / SOURCE_FILE, record["source_sha256"])
            record["file"] = str(folder.resolve() / record["file"])
        return Spec.from_json(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: {type(error).__name__} {error}; accepted is a file as compress-deploy writes "
            "it; restore the folder from its source"
        ) from error


def _check_source(source: Path, sha256: str) -> None:
    content = source.read_bytes() if source.is_file() else None
    if content is None or hashlib.sha256(content).hexdigest() != sha256:
        state = "missing" if content is None else "changed since the checkpoint was written"
        raise CheckpointError(
            f"{source}: {state}; accepted is the file with sha256 {sha256[:12]}; restore it"
        )


def load(folder: Path, keep_float: Sequence[str] = ()) -> tuple[fx.GraphModule, Spec]:
    """The network in ``folder``, in eval mode, equal to the last bit to the one that was saved.

    Layers that ``keep_float`` names (path or glob, ``first``, ``last``) come back without the
    quantizers of their weights, and values that no other layer wants on a grid without theirs.

    Raises:
        CheckpointError: The folder is not a checkpoint, or weights and structure disagree.
        ConfigError: A name in ``keep_float`` matches no layer.
    """
    spec = read_spec(folder)
    if keep_float and spec.quantization is not None:
        ignore = (*spec.quantization.ignore, *keep_float)
        spec = replace(spec, quantization=replace(spec.quantization, ignore=ignore))
    network = build(spec)
    try:
        state = load_file(folder / "model.safetensors")
        if keep_float:
            wanted = network.state_dict()
            state = {key: tensor for key, tensor in state.items() if key in wanted}
        network.load_state_dict(state, strict=True)
    except (RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: {reason}; accepted are weights saved together with spec.json; "
            "restore the folder from its source"
        ) from error
    return network.eval(), spec
