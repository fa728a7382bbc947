"""A file that is no model is said to be none, in one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from deploy.errors import StorageError
from exporters import onnx_file


def test_reads_a_model(classifier: Path) -> None:
    assert onnx_file.load(classifier) == onnx.load(str(classifier))


@pytest.mark.parametrize("content", [b"", b"\x08\x08not an onnx file", b"\x08\x09"])
def test_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(StorageError) as refused:
        onnx_file.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_refuses_a_truncated_model(classifier: Path) -> None:
    classifier.write_bytes(classifier.read_bytes()[:-100])
    with pytest.raises(StorageError, match="not a whole ONNX model"):
        onnx_file.load(classifier)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        onnx_file.load(tmp_path / "absent.onnx")
