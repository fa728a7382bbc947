"""Reads an ONNX file, or says in one line why it cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import MissingDependency, StorageError

if TYPE_CHECKING:
    from onnx import ModelProto


def load(path: Path) -> ModelProto:
    """The model in ``path``, external data included.

    Raises:
        StorageError: There is no such file, or it is not a whole ONNX model.
        MissingDependency: onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingDependency(
            f"{path}: looking into a graph needs onnx, which is not installed; "
            "install it with: pip install onnx"
        ) from error
    if not path.is_file():
        raise StorageError(f"{path}: no such file; give the path of an .onnx file")
    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise StorageError(
            f"{path}: not a whole ONNX model ({' '.join(str(error).split())[:200]}); "
            "export or copy it again, with its external data if it has any"
        ) from error
    if not model.graph.node or not model.graph.input:
        raise StorageError(
            f"{path}: holds a graph of {len(model.graph.node)} nodes and "
            f"{len(model.graph.input)} inputs; a model has at least one of each, export it again"
        )
    return model
