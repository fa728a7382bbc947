"""Small files of ``/proc`` and ``/sys``: read them, or say in one line why not and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from deploy.errors import DeviceError


def read_text(path: Path) -> str:
    """What the file says, without surrounding space and the NUL that ends device-tree strings.

    Raises:
        DeviceError: It is absent, closed to this user, or no text.
    """
    try:
        return path.read_bytes().decode("utf-8").strip("\0 \t\r\n")
    except UnicodeDecodeError as error:
        raise DeviceError(f"{path}: holds bytes that are no text; is it the file meant?") from error
    except PermissionError as error:
        raise DeviceError(
            f"{path}: permission denied; run as root, or let your user read it with a udev rule "
            f"or, until the next boot: sudo chmod o+r {path}"
        ) from error
    except FileNotFoundError as error:
        raise DeviceError(f"{path}: no such file") from error
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "input/output error")
        raise DeviceError(f"{path}: cannot be read ({reason})") from error


def read_number(path: Path) -> int:
    """The integer that the file holds, as every numeric file of sysfs does.

    Raises:
        DeviceError: It cannot be read, or holds something else.
    """
    text = read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise DeviceError(
            f"{path}: holds {text[:40]!r} where an integer belongs; is its driver loaded?"
        ) from error


def optional_text(path: Path) -> str | None:
    """As ``read_text``, ``None`` where that fails: for what is nice to know."""
    try:
        return read_text(path)
    except DeviceError:
        return None


def optional_number(path: Path) -> int | None:
    """As ``read_number``, ``None`` where that fails: for what is nice to know."""
    try:
        return read_number(path)
    except DeviceError:
        return None
