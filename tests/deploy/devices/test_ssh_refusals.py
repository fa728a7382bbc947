"""Boards over ssh that cannot be used: each says what to do, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.bundle import Bundle
from deploy.devices.ssh import SshDevice
from deploy.errors import CompressDeployError, DeviceError, MissingDependency

Runner = Callable[[], bytes]


def refusal(device: SshDevice) -> str:
    with pytest.raises(CompressDeployError) as caught:
        device.check()
    assert "\n" not in str(caught.value)
    assert device.ssh_processes == ()
    return str(caught.value)


def test_a_changed_host_key(sshd: Any) -> None:
    sshd.make_key("host")
    assert "its host key has changed" in refusal(sshd.device())


def test_an_unknown_host_key(sshd: Any) -> None:
    (sshd.folder / "known_hosts").write_text("")
    assert "its host key is not known" in refusal(sshd.device())


def test_a_user_who_may_not_enter(sshd: Any) -> None:
    (sshd.folder / "authorized_keys").write_text("")
    assert "refused to let this user in" in refusal(sshd.device())


def test_nobody_listens(stopped_sshd: Any) -> None:
    assert "nothing listens there" in refusal(stopped_sshd.device())


def test_no_python(sshd: Any) -> None:
    said = refusal(sshd.device(python="/no/such/python3"))
    assert "there is no /no/such/python3 there" in said and "--python" in said


def test_a_python_that_is_too_old(sshd: Any, tmp_path: Path) -> None:
    old = tmp_path / "python3.6"
    old.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 6, 9)\nexec(sys.argv[2])\n"
    )
    old.chmod(0o755)
    said = refusal(sshd.device(python=str(old)))
    assert "is 3.6; Python 3.8 or newer is needed" in said


def test_no_ssh_here() -> None:
    device = SshDevice("board", ssh="/no/such/ssh")
    with pytest.raises(MissingDependency, match="install the OpenSSH client"):
        device.check()


def test_a_configuration_that_is_not_there(sshd: Any, tmp_path: Path) -> None:
    said = refusal(sshd.device(ssh_config=str(tmp_path / "none")))
    assert "the ssh configuration cannot be read" in said


def turning_away(path: Path, times: int) -> str:
    """An ssh that is turned away so often before it gets through."""
    (path.parent / "knocks").write_text("")
    path.write_text(
        f"#!/bin/sh\necho >>{path.parent}/knocks\n"
        f"if [ $(wc -l <{path.parent}/knocks) -le {times} ]; then\n"
        "echo 'kex_exchange_identification: Connection closed by remote host' >&2; exit 255\nfi\n"
        'exec ssh "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_a_busy_door_is_knocked_on_again(
    sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    assert sshd.device(ssh=turning_away(tmp_path / "ssh", 2)).check()["ready"]
    said = refusal(sshd.device(ssh=turning_away(tmp_path / "ssh", 99)))
    assert "Connection closed by remote host" in said
    assert len((tmp_path / "knocks").read_text().splitlines()) == 4


def test_a_folder_that_cannot_be_made(sshd: Any) -> None:
    assert "board: /proc/none" in refusal(sshd.device(folder="/proc/none"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "ssh: Could not resolve hostname board: Name or service not known",
            "no host of that name",
        ),
        ("ssh: connect to host board port 22: Connection timed out", "does not answer"),
        ("ssh: connect to host board port 22: No route to host", "no way to it"),
        ("ssh: connect to host board port 22: Network is unreachable", "check the network"),
        ("kex_exchange_identification: Connection closed by remote host", "ssh -v HOST"),
        ("Bad owner or permissions on /home/me/.ssh/config", "does not trust its own"),
    ],
)
def test_what_ssh_says_is_explained(
    words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 255\n")
    ssh.chmod(0o755)
    assert told in refusal(SshDevice("board", ssh=str(ssh)))


def test_a_talkative_login_is_not_listened_to_for_ever(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nexec yes\n")
    ssh.chmod(0o755)
    assert "its login scripts print without an end" in refusal(SshDevice("board", ssh=str(ssh)))


@pytest.fixture
def small_disk(stopped_sshd: Any) -> Iterator[Path]:
    """13 MiB of memory as the far side's disk."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs takes root")
    folder: Path = stopped_sshd.far
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=13m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    if size == 1 << 12:
                        raise
                    break


def test_too_little_room_is_seen_before_anything_is_copied(
    small_disk: Path, stopped_sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    stopped_sshd.start()
    fill(small_disk)
    with pytest.raises(DeviceError, match="bytes are needed and .* are free; free some space"):
        stopped_sshd.device(runner).bench(bundle.folder, {})


def test_a_disk_that_fills_up_during_the_copy(
    small_disk: Path, stopped_sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    stopped_sshd.start()

    def progress(stage: str, share: float) -> None:
        if "copy" in stage and share > 0.3 and not (small_disk / "filler").exists():
            fill(small_disk)

    device = stopped_sshd.device(runner)
    with pytest.raises(DeviceError, match="No space left on device"):
        device.bench(bundle.folder, {}, progress)
    assert not list((small_disk / "store").glob("*.part"))
    (small_disk / "filler").unlink()
    assert stopped_sshd.device(runner).bench(bundle.folder, {})["status"] == "complete"


def test_a_disk_that_fills_up_during_the_run(
    small_disk: Path, stopped_sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    stopped_sshd.start()

    def progress(stage: str, share: float) -> None:
        if stage == "step 1":
            fill(small_disk)

    with pytest.raises(
        CompressDeployError, match="board: .*(No space left|no result could be written)"
    ):
        stopped_sshd.device(runner).bench(bundle.folder, {"steps": 20, "pause_s": 0.05}, progress)
    assert stopped_sshd.jobs == []


def test_a_limit_on_the_size_of_files(stopped_sshd: Any, bundle: Bundle, runner: Runner) -> None:
    stopped_sshd.start('ForceCommand ulimit -f 1024; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(DeviceError, match="File too large"):
        stopped_sshd.device(runner).bench(bundle.folder, {})
    assert not list((stopped_sshd.far / "store").glob("*.part"))
