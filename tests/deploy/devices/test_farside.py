"""What the far side makes of files and jobs that an earlier failure left behind."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from deploy.devices import farside
from deploy.devices.farside import UNUSED_AFTER_S, FarSide

CONTENT = b"a model"
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def side(tmp_path: Path) -> FarSide:
    made = FarSide()
    made.hello({"folder": str(tmp_path)}, b"")
    return made


def left_job(side: FarSide, name: str, process: str) -> Path:
    """A job of long ago."""
    job = side.folder / "jobs" / name
    job.mkdir()
    (job / "process.json").write_text(process)
    long_ago = time.time() - 2 * UNUSED_AFTER_S
    os.utime(job, (long_ago, long_ago))
    return job


def test_a_copy_that_ended_before_it_was_checked(side: FarSide) -> None:
    part = side.folder / "store" / f"{NAME}.part"
    part.write_bytes(CONTENT)
    answer, _ = side.have({"files": {NAME: len(CONTENT)}}, b"")
    assert answer["held"] == {NAME: len(CONTENT)}
    assert (side.folder / "store" / NAME).read_bytes() == CONTENT
    assert not part.exists()


def test_a_copy_that_the_power_took_is_copied_again(side: FarSide) -> None:
    (side.folder / "store" / f"{NAME}.part").write_bytes(bytes(len(CONTENT)))
    answer, _ = side.have({"files": {NAME: len(CONTENT)}}, b"")
    assert answer["held"] == {NAME: 0}
    side.put({"name": NAME, "size": len(CONTENT), "offset": 0}, CONTENT)
    assert (side.folder / "store" / NAME).read_bytes() == CONTENT


def test_forgotten_jobs_whose_process_is_not_ours(
    side: FarSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_user(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    jobs = [
        left_job(side, "foreign", json.dumps({"pid": 1, "since": ["boot", "1"]})),
        left_job(side, "cut", ""),
    ]
    monkeypatch.setattr(farside.os, "kill", of_another_user)
    side.have({"files": {}}, b"")
    assert not any(job.exists() for job in jobs)


def test_files_that_go_while_they_are_looked_at(
    side: FarSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = side.folder / "store"
    (store / NAME).write_bytes(CONTENT)
    listed = [store / f"{'0' * 64}.part", store / NAME]  # the first is whole by now
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(listed if folder == store else []))
    side._forget({}, 0.0)
    assert not (store / NAME).exists()
