"""One process at a time makes an artifact; what a dead process left half-made is swept away.

The lock is the kernel's (``flock``): it ends with its process, however that ended, so a lock file
that nobody holds says that its maker is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from deploy.errors import StorageError

SCRATCH = ".scratch-"
LOOK_AGAIN_S = 0.2
# A lock is also held for a moment by whoever sweeps up, or looks and finds the artifact made.
GRACE_S = 1.0


class KeyLock:
    """Held while ``<folder>/<name>`` is being made.

    Args:
        waits: Is told once that another process holds it, and waits for as long as it does; without one
            only a moment is waited.

    Raises:
        StorageError: another living process is making the same artifact, and nobody waits for it.
    """

    def __init__(
        self, folder: Path, name: str, *, waits: Callable[[str], None] | None = None
    ) -> None:
        self._path, self._waits = folder / f".lock-{name}", waits
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder deletes the file: what was locked may no longer be what is there.
                current = self._path.stat().st_ino == os.fstat(descriptor).st_ino
            except BlockingIOError:
                os.close(descriptor)
                return False
            except FileNotFoundError:
                current = False
            if current:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def release(self) -> None:
        """Delete the file first, so that whoever locks it after us sees that it is stale."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> KeyLock:
        asked, told = time.monotonic(), False
        while not self.try_acquire():
            if not told and time.monotonic() - asked > GRACE_S:
                if self._waits is None:
                    raise StorageError(
                        f"{self._path.parent}: {self._holder()} is making the same artifact; "
                        "wait for it to end, or give another --out"
                    )
                self._waits(f"waiting for {self._holder()}, which is making the same artifact")
                told = True
            time.sleep(LOOK_AGAIN_S)
        return self

    def _holder(self) -> str:
        """Who wrote its number into the lock, which may vanish at any moment."""
        try:
            number = self._path.read_text()
        except FileNotFoundError:
            number = ""
        return f"process {number}" if number else "another process"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def remove_dead_scratch(folder: Path) -> None:
    """Delete scratch folders whose process is gone; those of living processes stay."""
    for scratch in sorted(folder.glob(f"{SCRATCH}*")):
        lock = KeyLock(folder, scratch.name[len(SCRATCH) :])
        if lock.try_acquire():
            shutil.rmtree(scratch, ignore_errors=True)
            lock.release()
