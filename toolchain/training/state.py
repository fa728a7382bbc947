"""The mid-stage checkpoint: one file of tensors and numbers, replaced atomically."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from deploy.errors import CheckpointError, StorageError


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that a kill at any moment leaves the old file or the new one.

    Raises:
        StorageError: The file cannot be written, e.g. the disk is full.
    """
    # torch.save reports a full disk as a RuntimeError without an errno, so memory comes first.
    memory = io.BytesIO()
    torch.save(state, memory)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: the training checkpoint cannot be written ({error.strerror}); "
            f"{memory.tell()} bytes are needed; free some space and run again"
        ) from error


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read what ``save_state`` wrote; None if there is nothing to resume.

    Raises:
        CheckpointError: The file is damaged, or belongs to a run with another ``fingerprint``.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: not a training checkpoint ({str(error).splitlines()[0]}); "
            "delete it to start this stage anew"
        ) from error
    if found != fingerprint:
        raise CheckpointError(
            f"{path}: belongs to a training run with other settings, data or parameters; "
            "delete it to start this stage anew"
        )
    return state
