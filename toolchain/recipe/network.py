"""Where a network comes from, as a recipe says it: the fields that every mention of one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from toolchain.recipe.base import Frozen


class NetworkOrigin(Frozen):
    """A network and its weights: exactly one of builtin and file."""

    builtin: str | None = Field(None, description="name of a built-in network")
    file: str | None = Field(None, description="a Python file and a function in it: net.py:build")
    args: dict[str, Any] = Field({}, description="keyword arguments of the constructor")
    checkpoint: Path | None = Field(None, description=".safetensors, or a torch file of tensors")

    @model_validator(mode="after")
    def _one_constructor(self) -> NetworkOrigin:
        if (self.builtin is None) == (self.file is None):
            found = "none given" if self.builtin is None else "both given"
            raise ValueError(f"{found} of 'builtin' and 'file'; accepted: exactly one of them")
        if self.file is not None:
            check_constructor(self.file)
        return self


def check_constructor(file: str) -> None:
    """ValueError, for pydantic, if it is not ``PATH.py:FUNCTION``."""
    path, _, function = file.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise ValueError(
            f"file is {file!r}; accepted: a Python file and a function in it, e.g. net.py:build"
        )
