"""The corpus: small good and bad graphs that linter, NVIDIA's importer and ONNX Runtime are compared on."""

from __future__ import annotations

from tests.exporters.lint import (  # noqa: F401  importing them registers their cases
    corpus_files,
    corpus_grids,
    corpus_odd,
    corpus_placement,
    corpus_unsigned,
    corpus_weights,
)
from tests.exporters.lint.canvas import CASES, Case

__all__ = ["CASES", "Case"]
