"""A text file that appears whole or not at all, and a folder that one process at a time changes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterator

from deploy.errors import StorageError


def write_whole(path: Path, text: str, what: str, remedy: str) -> Path:
    """Write ``text`` aside and rename it to ``path``; its folder is made where it is not there.

    ``what`` the file is and the ``remedy`` complete the message of an error.

    Raises:
        StorageError: It cannot be written; nothing was left behind, and what was there still is.
    """
    path = Path(path)
    if path.is_dir():
        raise StorageError(
            f"{path}: {what} cannot be written there, it is a folder; name a file in it"
        )
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink()
            raise
    except OSError as error:
        raise StorageError(
            f"{path}: {what} cannot be written ({error.strerror}); {remedy}"
        ) from error
    return path


def require_writable(path: Path, what: str, remedy: str) -> None:
    """Refuse at once what `write_whole` would refuse after the work; what is there already stays.

    Raises:
        StorageError: The file could not be written.
    """
    path = Path(path)
    if path.is_dir():
        write_whole(path, "", what, remedy)
    trial = path.with_name(f".{path.name}.{os.getpid()}.trial")
    try:
        write_whole(trial, "", what, remedy).unlink()
    except StorageError as error:
        raise StorageError(str(error).replace(str(trial), str(path), 1)) from error


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for the folder's lock and hold it, so that of two who add each sees what the other added.

    The lock is the kernel's (``flock``) on the folder itself: it leaves no file behind.

    Raises:
        OSError: The folder cannot be opened.
    """
    import fcntl

    handle = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
