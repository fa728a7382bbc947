"""A session answers one question in every runtime: what does this model say to these inputs?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Protocol

import numpy as np

Feeds = Dict[str, np.ndarray]


@dataclass(frozen=True)
class Port:
    """One input or output of a model; ``None`` in ``shape`` is a size chosen at run time."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Session(Protocol):
    """A loaded model.  ``run`` returns only when the outputs are on the host."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def outputs(self) -> tuple[Port, ...]: ...

    def run(self, feeds: Feeds) -> Feeds: ...

    def close(self) -> None: ...
