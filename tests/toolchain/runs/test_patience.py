"""Runs that share a folder: one waits where another is making what both need, if it is told to."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deploy.errors import StorageError
from toolchain.runs.lock import KeyLock


def test_a_patient_lock_is_taken_when_it_is_free(tmp_path: Path) -> None:
    first, waiting, order = KeyLock(tmp_path, "slim-1"), threading.Event(), list[str]()

    def second() -> None:
        waiting.set()
        with KeyLock(tmp_path, "slim-1", patient=True):
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
        order.append("first")
    thread.join(10)
    assert not thread.is_alive()
    assert order == ["first", "second"]
