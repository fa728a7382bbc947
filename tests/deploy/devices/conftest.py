"""A real sshd on loopback, a small bundle, and the real runner with a stand-in for the measurement."""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle import Bundle, write_bundle
from deploy.devices.packing import pack_runner
from deploy.devices.ssh import SshDevice

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))

# Steps until its request says so, tells progress, and answers SIGTERM with what it has.
STAND_IN = """
import os, signal, sys, time
from benchmarks.runner import main

def bench(bundle, request, progress):
    status, done, steps = "complete", 0, request.get("steps", 3)
    if request.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if request.get("dies"):
        os.kill(os.getpid(), 9)
    try:
        while done < steps or not os.path.exists(request.get("until", os.curdir)):
            progress("step %d" % done, done / steps)
            time.sleep(request.get("pause_s", 0))
            done += 1
    except KeyboardInterrupt:
        status = "partial"
    return {
        "format": "compress-deploy record", "format_version": 1, "status": status,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time())),
        "invalid_because": [], "bundle": {"name": bundle.name, "manifest_sha256": ""},
        "device": {"name": "", "kind": ""}, "harness": {}, "environment": {},
        "modes": {"provider": "ort-cpu", "target": "ort-cpu", "threads": 1, "batch": 1,
                  "scenario": "single-stream", "profile": "quick", "versions": {}},
        "models": {"student": {"file": "", "sha256": "", "latency_ms": {"n": done}}},
        "checks": {"warnings": []}, "request": request, "python": sys.version_info[:2],
    }

sys.exit(main(bench=bench))
"""


def stand_in() -> bytes:
    """The packed runner with another ``__main__``."""
    changed = io.BytesIO()
    packed = zipfile.ZipFile(io.BytesIO(pack_runner()))
    with packed, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in packed.namelist():
            out.writestr(name, STAND_IN if name == "__main__.py" else packed.read(name))
    return changed.getvalue()


@pytest.fixture(scope="session")
def runner() -> Callable[[], bytes]:
    content = stand_in()
    return lambda: content


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose model file is a megabyte of noise: the stand-in does not load it."""
    noise = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8)
    (tmp_path / "model.onnx").write_bytes(noise.tobytes())
    return write_bundle(
        tmp_path / "bundle",
        name="noise",
        targets={"ort-cpu": tmp_path / "model.onnx"},
        input_name="images",
        input_shape=(1, 2, 2),
        output_name="logits",
        classes=("a", "b"),
        mean=(0.5,),
        std=(0.25,),
        sample_inputs=np.zeros((1, 1, 2, 2), np.uint8),
        sample_outputs=np.zeros((1, 2), np.float32),
        recipe={},
        seeds={},
        versions={},
    )


class Sshd:
    """An sshd of this user's, its keys and its client's settings, all below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        self.user = getpass.getuser()
        self.far, self.temporary = folder / "far", folder / "tmp"
        self.client_config, self.log = folder / "ssh_config", folder / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.temporary.mkdir(parents=True)
        for key in ("host", "user"):
            self.make_key(key)
        shutil.copyfile(folder / "user.pub", folder / "authorized_keys")
        self.trust()
        self.client_config.write_text(
            f"IdentityFile {folder}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
            "StrictHostKeyChecking yes\n"
        )

    @property
    def url(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def make_key(self, name: str) -> None:
        for path in (self.folder / name, self.folder / f"{name}.pub"):
            path.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def trust(self) -> None:
        key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def start(self, *settings: str) -> None:
        """Listen; ``settings`` are further lines of its configuration."""
        config = self.folder / "sshd_config"
        lines = (
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/authorized_keys",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PidFile none",
            f"SetEnv TMPDIR={self.temporary}",
        )
        config.write_text("\n".join((*settings, *lines)) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # what the service does; sshd of root insists
        assert SSHD is not None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if self._process.poll() is not None or time.monotonic() > until:
                pytest.skip(f"sshd does not start here: {self.log.read_text().strip()}")
            time.sleep(0.01)

    def cut(self) -> int:
        """End the connections that there are, as a router does; how many."""
        assert self._process is not None
        connections = _children(self._process.pid)
        sessions = [session for pid in connections for session in _children(pid)]
        for pid in (*connections, *sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(connections)

    def stop(self) -> None:
        if self._process is not None:
            self.cut()
            self._process.kill()
            self._process.wait()
            self._process = None

    def device(self, runner: Callable[[], bytes] = pack_runner, **settings: object) -> SshDevice:
        chosen: dict[str, object] = {
            "name": "board",
            "python": sys.executable,
            "folder": str(self.far),
            "ssh_config": str(self.client_config),
            "patience_s": 5.0,
            "runner": runner,
        }
        return SshDevice.from_url(self.url, **{**chosen, **settings})

    @property
    def jobs(self) -> list[Path]:
        return sorted((self.far / "jobs").iterdir()) if self.far.exists() else []


@pytest.fixture(scope="session")
def login(tmp_path_factory: pytest.TempPathFactory) -> None:
    """That this user may enter through an sshd of their own; some accounts are locked."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("openssh-server and openssh-client are not installed")
    daemon = Sshd(tmp_path_factory.mktemp("login") / "sshd")
    daemon.start()
    command = ["ssh", "-F", str(daemon.client_config), "-oBatchMode=yes", "-p", str(daemon.port)]
    done = subprocess.run([*command, "127.0.0.1", "true"], capture_output=True, text=True)
    daemon.stop()
    if done.returncode:
        last = (daemon.log.read_text().strip().splitlines() or [done.stderr])[-1]
        pytest.skip(f"this user cannot log in to an sshd of their own: {last}")


@pytest.fixture
def stopped_sshd(login: None, tmp_path: Path) -> Iterator[Sshd]:
    daemon = Sshd(tmp_path / "sshd")
    yield daemon
    daemon.stop()


@pytest.fixture
def sshd(stopped_sshd: Sshd) -> Sshd:
    stopped_sshd.start()
    return stopped_sshd


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
