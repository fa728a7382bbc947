"""The log of a training run: JSON lines, and TensorBoard events where asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from deploy.errors import MissingDependency

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


# Some hundreds of steps of a long trail.
BUFFER_BYTES = 1 << 18


class MetricsLog:
    """Appends records to a file; a resumed run first forgets what it will do again.

    Each line has ``kind``, ``step`` (steps done), and numbers. Kinds are ``step`` and ``epoch``, with
    means over the epoch so far, and ``trail``, with what an objective decided for that one step.

    Args:
        path: The JSON lines file, or None to keep nothing.
        step: Steps already done; records of later steps are dropped from the file.
        tensorboard: Folder for TensorBoard events, or None.

    Raises:
        MissingDependency: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, path: Path | None, *, step: int = 0, tensorboard: Path | None = None
    ) -> None:
        self._writer = None if tensorboard is None else _tensorboard(tensorboard, step)
        self._file = None
        if path is not None:
            if step and path.exists():
                _cut_after(path, step)
            mode = "a" if step else "w"
            self._file = path.open(mode, encoding="utf-8", buffering=BUFFER_BYTES)

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Append one record, on the disk at once; a number that is not finite becomes null."""
        self._append(kind, step, numbers)
        self.flush()
        self._add_events(kind, step, numbers)

    def write_trail(self, step: int, numbers: Mapping[str, float], *, events: bool = True) -> None:
        """Append a step's trail, which reaches the disk with the next ``write`` or ``flush``.

        ``events`` says whether TensorBoard gets it too: an event takes it longer than all the rest
        of the line, and its own display shows a thousand points of each curve.
        """
        self._append("trail", step, numbers)
        if events:
            self._add_events("trail", step, numbers)

    def flush(self) -> None:
        """Put on the disk what was appended."""
        if self._file is not None:
            self._file.flush()

    def _append(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        if self._file is not None:
            finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
            self._file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")

    def _add_events(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _cut_after(path: Path, step: int) -> None:
    """Shorten the file to its whole records up to ``step``; a kill can leave half a last line.

    Steps never fall within a file, so what stays is its beginning, and is not written again.
    """
    kept = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept += len(line)
        file.truncate(kept)


def _tensorboard(folder: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency(
            "training.tensorboard: the package tensorboard is not installed; "
            "install compress-deploy[tensorboard], or set tensorboard to false"
        ) from error
    return SummaryWriter(str(folder), purge_step=step or None)
