"""NVIDIA's ONNX importer as a judge of graphs: no GPU needed, no engine built."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from deploy.engines.bindings import MODULES, Bindings, find_bindings
from deploy.engines.messages import Messages, listening, logger_of
from deploy.engines.worker import Answer, Progress, WorkerDied, shared_worker
from deploy.errors import StorageError

# Messages start with a place in NVIDIA's sources.
_SOURCE = re.compile(r"^\w+\.cpp:\d+: ")


@dataclass(frozen=True)
class Problem:
    """Why a graph was refused; ``operator`` and ``node`` are empty where no node is to blame."""

    code: str
    description: str
    operator: str
    node: str

    def __str__(self) -> str:
        where = f"{self.operator} {self.node!r}: " if self.operator or self.node else ""
        return f"{where}{self.description} ({self.code})"


@dataclass(frozen=True)
class Import:
    """What the importer made of a graph; truthy when it accepted it."""

    accepted: bool
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    parser: str

    def __bool__(self) -> bool:
        return self.accepted


def import_onnx(model: bytes | str | Path, runtime: str | None = None) -> Import:
    """Run the importer of ``runtime`` (``tensorrt``, ``rtx``; the first that is installed) on a model.

    A file's external data is looked for beside it; bytes have none.  The importer runs in a child
    process, so a graph that crashes it is refused with the code ``CRASH``.  Nothing is printed.

    Raises:
        MissingDependency: Neither runtime is installed.
        StorageError: The file cannot be read.
    """
    if isinstance(model, bytes):
        handle, name = tempfile.mkstemp(suffix=".onnx")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(model)
            return _ask({"model": name, "alone": True, "runtime": runtime})
        finally:
            Path(name).unlink()
    path = readable(model)
    return _ask({"model": str(path), "alone": False, "runtime": runtime})


def readable(model: str | Path) -> Path:
    """The absolute path of a file that can be opened.

    Raises:
        StorageError: It cannot.
    """
    path = Path(model).absolute()
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise StorageError(
            f"{model}: cannot be read ({error.strerror}); give the path of an .onnx file"
        ) from error


def _ask(request: Answer) -> Import:
    try:
        answer = shared_worker().ask("import", request)
    except WorkerDied as death:
        if not death.signal_name:
            raise
        parser = MODULES.get(request["runtime"], "TensorRT")
        return Import(False, (Problem("CRASH", str(death), "", ""),), (), parser)
    return Import(
        answer["accepted"],
        tuple(Problem(**problem) for problem in answer["problems"]),
        tuple(answer["warnings"]),
        answer["parser"],
    )


def answer_import(request: Answer, progress: Progress) -> Answer:
    """The worker's side of ``import_onnx``."""
    bindings = find_bindings(request["runtime"])
    with listening() as messages:
        builder = bindings.make_builder(logger_of(bindings), lambda: messages.first_error)
        network = builder.create_network(bindings.network_flags(bindings.types_strongly))
        problems = parse(bindings, network, Path(request["model"]), alone=request["alone"])[1]
    return {
        "accepted": not problems,
        "problems": [problem.__dict__ for problem in problems],
        "warnings": messages.warnings,
        "parser": bindings.title,
    }


def parse(
    bindings: Bindings, network: Any, model: Path, *, alone: bool = False
) -> tuple[Any, list[Problem]]:
    """Parse a file into a network; returns the parser, which must outlive it, and the problems.

    ``alone`` hides where the file lies, so that external data is not looked for.
    """
    with listening() as messages:
        parser = bindings.trt.OnnxParser(network, logger_of(bindings))
        accepted = parser.parse(model.read_bytes()) if alone else parser.parse_from_file(str(model))
    problems = [_problem(bindings, error, messages) for error in bindings.errors_of(parser)]
    if not accepted and not problems:
        problems.append(Problem("UNKNOWN", "refused without a reason", "", ""))
    if not problems and not network.num_outputs:
        # An empty file is a valid protobuf, and the importer accepts it.
        problems.append(Problem("EMPTY", "the graph has no outputs", "", ""))
    return parser, problems


def _problem(bindings: Bindings, error: Any, messages: Messages) -> Problem:
    code = str(getattr(error.code(), "name", error.code()))
    operator, node, description = map(_text, (*bindings.node_of(error), error.desc))
    if not node and not operator:
        # That a file of external data is missing, say, is in the log alone.
        causes = [_SOURCE.sub("", text) for text in messages.errors if description not in text]
        description = ": ".join([description, *causes[:1]])
    return Problem(code, description, operator, node)


def _text(get: Callable[[], str]) -> str:
    try:
        return " ".join(str(get()).split())
    except UnicodeDecodeError:  # a corrupt model's names are any bytes
        return "(not text)"
