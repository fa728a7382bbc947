"""The fingerprint follows content and names, not places."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolchain.data import fingerprint
from toolchain.data.fingerprint import of_files


def _write(root: Path, **contents: str) -> list[Path]:
    root.mkdir()
    for name, content in contents.items():
        (root / name).write_text(content)
    return [root / name for name in contents]


def test_place_and_order_play_no_part(tmp_path: Path) -> None:
    a = _write(tmp_path / "a", x="1", y="2")
    b = _write(tmp_path / "b", y="2", x="1")
    assert of_files(tmp_path / "a", a) == of_files(tmp_path / "b", b)


@pytest.mark.parametrize("other", [{"x": "2", "y": "2"}, {"x": "1", "z": "2"}, {"x": "1"}])
def test_content_and_names_do(tmp_path: Path, other: dict[str, str]) -> None:
    a = _write(tmp_path / "a", x="1", y="2")
    b = _write(tmp_path / "b", **other)
    assert of_files(tmp_path / "a", a) != of_files(tmp_path / "b", b)


def test_large_data_goes_by_change_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _write(tmp_path / "a", x="1")
    before = of_files(tmp_path / "a", files)
    os.utime(files[0], (1, 1))
    assert of_files(tmp_path / "a", files) == before
    monkeypatch.setattr(fingerprint, "CONTENT_LIMIT_BYTES", 1)
    first = of_files(tmp_path / "a", files)
    os.utime(files[0], (2, 2))
    assert of_files(tmp_path / "a", files) != first
