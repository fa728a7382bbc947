"""Files appear whole or not at all, and failures leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import StorageError
from deploy.whole_file import write_whole


def test_a_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert write_whole(path, "µ\n", "the record", "try again") == path
    assert path.read_bytes() == "µ\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError) as caught:
        write_whole(path, "new", "the record", "free some space")
    assert str(caught.value) == (
        f"{path}: the record cannot be written (No space left on device); free some space"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="the page cannot be written"):
        write_whole(tmp_path / "file" / "a.html", "", "the page", "give --out")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path()):
        with pytest.raises(StorageError, match="it is a folder; name a file in it"):
            write_whole(path, "", "the page", "give --out")
    assert not list(tmp_path.iterdir())
