"""What the linter says about one node."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One rule at one node; ``node`` is empty where the whole file is meant.

    ``error``: the target refuses the graph, or computes something else than it says.  ``warning``: it
    works, and slower or otherwise than a reader of the graph would think.  ``note``: worth knowing.

    ``refused_by_importer``: NVIDIA's ONNX importer (that of TensorRT-RTX 1.7) does not take the graph
    because of this.  An error without it is one that the importer lets through.
    ``stays_float``: ONNX Runtime leaves this layer in float on x86-64.
    """

    rule: str
    level: Level
    node: str
    message: str
    remedy: str
    refused_by_importer: bool = False
    stays_float: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
