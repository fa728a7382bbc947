"""``lint``: all rules of a target over one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporters import onnx_file
from exporters.lint.finding import LEVELS, Finding
from exporters.lint.registry import rules
from exporters.lint.soundness import require_sound
from exporters.lint.target import LintTarget
from exporters.lint.view import GraphView

if TYPE_CHECKING:
    from onnx import ModelProto

# Families of rules that need no order of the nodes.
WITHOUT_ORDER = ("FILE-", "OP-")


def lint(
    model: Path | ModelProto, target: str, *, trt_version: str = "11", dla: bool = False
) -> list[Finding]:
    """What ``target`` refuses, silently changes or does not fuse in the graph, errors first.

    Raises:
        ConfigError: There is no such target or version, or it has no DLA.
        StorageError: There is no such file, or it is not a whole ONNX model with all of its data.
        MissingDependency: onnx is not installed.
    """
    wanted = LintTarget.parse(target, trt_version, dla)
    if isinstance(model, Path):
        return check(read(model), wanted)
    require_sound(model, model.graph.name or "the model")
    return check(GraphView(_inlined(model)), wanted)


def read(path: Path) -> GraphView:
    """The graph in a file, its external data included.

    Raises:
        StorageError: There is no such file, or it is not a whole ONNX model with all of its data.
        MissingDependency: onnx is not installed.
    """
    model = onnx_file.load(path)
    require_sound(model, str(path))
    return GraphView(_inlined(model), *_external(path))


def _inlined(model: ModelProto) -> ModelProto:
    """Functions of the file itself written out where they are called: quantizers may be inside."""
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def check(view: GraphView, target: LintTarget) -> list[Finding]:
    """Errors first, then by rule in the rules' order, then by node in the graph's.

    Of a graph with a cycle only file and operators are looked at: the rest follows values back to where
    they come from, which has no end there.
    """
    wanted = [
        rule
        for rule in rules().values()
        if not view.cycle or (rule.id.startswith(WITHOUT_ORDER) and rule.id != "OP-TRAINING")
    ]
    found = [finding for rule in wanted for finding in rule.findings(view, target)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _external(path: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of the files that hold tensors of the model, as it says them, and of those tensors."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    away = [
        tensor
        for tensor in model.graph.initializer
        if onnx.external_data_helper.uses_external_data(tensor)
    ]
    files = {
        entry.value for tensor in away for entry in tensor.external_data if entry.key == "location"
    }
    return tuple(sorted(files)), frozenset(tensor.name for tensor in away)


def has_errors(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)
