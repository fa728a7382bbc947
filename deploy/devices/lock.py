"""One measurement at a time on a machine, whoever asks and from wherever.

The lock is the kernel's (``flock``): it ends with the process that holds it, however that ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import Iterator

from deploy.errors import DeviceError

FILE = "compress-deploy-device.lock"


@contextlib.contextmanager
def only_one(path: Path | None = None) -> Iterator[None]:
    """Hold the machine; ``path`` defaults to one file for all users in the temporary folder.

    Raises:
        DeviceError: Another process holds it; says which.
    """
    path = path or Path(tempfile.gettempdir()) / FILE
    try:
        descriptor = _opened(path)
    except OSError as error:
        raise DeviceError(
            f"{path}: the lock that keeps measurements apart cannot be opened ({error.strerror}); "
            "remove the file, or point TMPDIR to a folder that can be written"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            by = f"process {holder}" if holder else "another process"
            raise DeviceError(
                f"{by} is measuring here already, and two would disturb each other; wait for it or "
                "end it"
            ) from None
        with contextlib.suppress(OSError):  # another user's file can be locked and not written
            os.fchmod(descriptor, 0o644)  # whatever the umask: others have to open it to lock it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """A descriptor to lock; no link is followed in a folder that everybody may write to."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(str(path), os.O_RDWR | os.O_CREAT | flags, 0o644)
    except PermissionError:  # another user's
        return os.open(str(path), os.O_RDONLY | flags)
