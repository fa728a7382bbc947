"""What a runner says while it works and how it ended, whatever place it runs in.

A runner writes lines of JSON: ``{"stage": text, "share": 0..1}`` as it goes on, and one
``{"error": message, "kind": class}`` where it gives up on purpose.
"""

from __future__ import annotations

import json
from typing import Any, Callable

from deploy import errors
from deploy.errors import CompressDeployError, DeviceError

Progress = Callable[[str, float], None]
FULL_BYTES = 1 << 16


class Lines:
    """Reads a runner's lines: passes progress on and remembers the error."""

    def __init__(self, name: str, progress: Progress | None) -> None:
        self._name, self._progress = name, progress
        self.error: CompressDeployError | None = None

    def read(self, text: str) -> None:
        """Take whole lines; one that is no JSON is somebody else's and is passed over."""
        for line in text.splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if not isinstance(said, dict):
                continue
            if "error" in said:
                kind = _kinds().get(str(said.get("kind")), DeviceError)
                self.error = kind(f"{self._name}: {said['error']}")
            elif "stage" in said and self._progress is not None:
                self._progress(str(said["stage"]), float(said["share"]))

    def failed(
        self, status: int | None, log: str, free_bytes: int | None = None
    ) -> CompressDeployError:
        """Why there is no result; ``status`` as a shell gives it, ``None`` when nobody saw the end."""
        if self.error is not None:
            return self.error
        if free_bytes is not None and free_bytes < FULL_BYTES:
            return DeviceError(
                f"{self._name}: no result could be written, {free_bytes} bytes are free there; free "
                "some space or choose another folder with --dir"
            )
        last = (log.strip().splitlines() or ["it said nothing"])[-1]
        if status is None:
            how = "has vanished without a result; the device may have restarted"
        elif status > 128:
            how = f"was killed by signal {status - 128}; the device may be short of memory"
        else:
            how = f"ended with status {status} and no result"
        return DeviceError(f"{self._name}: the runner {how} (its last line: {last})")


def placed(record: dict[str, Any], name: str, kind: str, **more: Any) -> dict[str, Any]:
    """The record with the name and kind of the place it comes from."""
    record["device"] = {**record.get("device", {}), "name": name, "kind": kind, **more}
    return record


def _kinds() -> dict[str, type[CompressDeployError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, CompressDeployError)
    }
