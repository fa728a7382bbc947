"""What is known about a machine: every field is there, and one that is not known has its reason."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Callable

from deploy.errors import DeviceError
from deploy.machine.sysfs import read_text

_FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/bin")


class Facts:
    """Values by field; ``missing`` says of each that is ``None`` why."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.missing: dict[str, str] = {}

    def put(self, field: str, value: Any, why: str) -> Any:
        """Keep a value, or the reason for its absence when it is ``None``."""
        self.values[field] = value
        if value is None:
            self.missing[field] = why
        return value

    def read(self, field: str, question: Callable[[], Any]) -> Any:
        """Keep what ``question`` returns, or the message of the DeviceError that it raises."""
        try:
            value = question()
        except DeviceError as error:
            return self.put(field, None, str(error))
        return self.put(field, value, "it is empty")

    def nest(self, field: str, inner: Facts) -> None:
        """Keep another collection under one field; its reasons get dotted names."""
        self.values[field] = inner.values
        self.missing.update({f"{field}.{name}": why for name, why in inner.missing.items()})


def first_of(*questions: Callable[[], Any]) -> Any:
    """The first answer; when all raise DeviceError, one with the reasons of all."""
    reasons = []
    for question in questions:
        try:
            return question()
        except DeviceError as error:
            reasons.append(str(error))
    raise DeviceError("; ".join(dict.fromkeys(reasons)))


def run_tool(root: Path, name: str, *arguments: str, timeout_s: float = 10.0) -> str:
    """What a program of that root prints.

    Raises:
        DeviceError: There is no such program, it fails, or it takes too long.
    """
    path = next((p for p in (root / folder / name for folder in _FOLDERS) if p.exists()), None)
    if path is None:
        raise DeviceError(f"{name}: not installed")
    try:
        done = subprocess.run(
            [str(path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{name}: no answer within {timeout_s:g} s") from error
    except OSError as error:
        raise DeviceError(f"{name}: cannot be run ({error.strerror})") from error
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        said = " ".join((done.stderr.decode("utf-8", "replace") or text).split())[:160]
        raise DeviceError(f"{name}: exit status {done.returncode}: {said or 'it said nothing'}")
    return text


def installed_packages(root: Path) -> dict[str, str]:
    """Debian packages and their versions, from dpkg's status file; empty where there is none."""
    try:
        text = read_text(root / "var/lib/dpkg/status")
    except DeviceError:
        return {}
    packages = {}
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            packages[fields["Package"]] = fields.get("Version", "")
    return packages


def read_json(path: Path) -> Any:
    """The file as JSON.  Raises DeviceError."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DeviceError(f"{path}: is no JSON ({error})") from error
