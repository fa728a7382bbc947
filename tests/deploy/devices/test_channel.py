"""What the far side's shell is given to start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.devices.channel import Channel
from deploy.errors import DeviceError

# Runs the command, its last argument, as sshd would: in a shell, in the home folder there.
SSH = '#!/bin/sh\nfor command; do :; done\ncd "$HOME" && exec /bin/sh -c "$command"\n'


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    program = tmp_path / "ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("folder", ["venv", "my venv", "it's $HOME `here`", "~"])
def test_a_python_in_the_home_folder_there(ssh: str, tmp_path: Path, folder: str) -> None:
    python = tmp_path / "home" / folder / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    channel = Channel("board", [ssh], f"~/{folder}/python")
    try:
        hello, _ = channel.ask("hello", folder=str(tmp_path / "far"))
    finally:
        channel.close()
    assert Path(hello["executable"]) == Path(sys.executable)


@pytest.mark.parametrize(
    "python", ["~;touch made;/python", "$(touch made)/python", "~/;touch made"]
)
def test_nothing_else_is_read_into_it(ssh: str, tmp_path: Path, python: str) -> None:
    with pytest.raises(DeviceError, match="there is no .* there"):
        Channel("board", [ssh], python)
    assert list((tmp_path / "home").iterdir()) == []
