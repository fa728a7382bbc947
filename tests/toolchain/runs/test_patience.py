"""Runs that share a folder: one waits where another is making what both need, if it is told to."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from deploy.errors import StorageError
from toolchain.runs.lock import GRACE_S, KeyLock


def test_a_patient_lock_is_taken_when_it_is_free(tmp_path: Path) -> None:
    first, waiting, order = KeyLock(tmp_path, "slim-1"), threading.Event(), list[str]()
    said, told = list[str](), threading.Event()

    def waits(line: str) -> None:
        said.append(line)
        told.set()

    def second() -> None:
        waiting.set()
        with KeyLock(tmp_path, "slim-1", waits=waits):
            order.append("second")

    with first:
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        with (
            pytest.raises(StorageError, match="is making the same artifact"),
            KeyLock(tmp_path, "slim-1"),
        ):
            order.append("impatient")
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert not thread.is_alive()
    assert order == ["first", "second"]
    assert said == [f"waiting for process {os.getpid()}, which is making the same artifact"]


def test_a_lock_that_is_held_for_a_moment_stops_nobody(tmp_path: Path) -> None:
    brief, held = KeyLock(tmp_path, "slim-1"), threading.Event()

    def look_whether_it_is_made() -> None:
        with brief:
            held.set()
            time.sleep(GRACE_S / 4)

    thread = threading.Thread(target=look_whether_it_is_made)
    thread.start()
    assert held.wait(10)
    with KeyLock(tmp_path, "slim-1"):
        thread.join(10)
    assert list(tmp_path.iterdir()) == []
