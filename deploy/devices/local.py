"""This machine as a device: the same runner as on a board, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Mapping

from deploy.devices.contents import add_built, scratch_folder
from deploy.devices.outcome import Lines, Progress, placed
from deploy.devices.packing import pack_runner
from deploy.errors import DeviceError


class LocalDevice:
    """Runs ``runner.pyz`` with this interpreter, or ``python``; ``close`` stops what runs."""

    kind = "local"

    def __init__(
        self,
        name: str = "local",
        python: str = sys.executable,
        runner: Callable[[], bytes] = pack_runner,
    ) -> None:
        self._name, self._python, self._runner = name, python, runner
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self._name

    def check(self, needs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with scratch_folder() as folder:
            arguments = ["check", "--json", "--out", "out/check.json", "--needs", "input.json"]
            arguments += ["--dir", str(Path().absolute())]
            self._run(folder, arguments, "check.json", needs)
            found = _read(folder / "out" / "check.json")
        return placed(found, self._name, self.kind)

    def bench(
        self, bundle: Path, request: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        asked = {**request, "device": self._name, "device_kind": self.kind}
        with scratch_folder() as folder:
            arguments = ["bench", str(Path(bundle).resolve()), "--request", "input.json"]
            arguments += ["--out", "out/record.json"]
            self._run(folder, arguments, "record.json", asked, progress)
            record: dict[str, Any] = _read(folder / "out" / "record.json")
        return placed(record, self._name, self.kind)

    def build(
        self, bundle: Path, settings: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        with scratch_folder() as folder:
            arguments = ["build", str(Path(bundle).resolve()), "--settings", "input.json"]
            arguments += ["--out", "out"]
            self._run(folder, arguments, "build.json", settings, progress)
            return add_built(Path(bundle), folder / "out")

    def close(self) -> None:
        self._closed.set()
        self._end(signal.SIGTERM)

    def _run(
        self,
        folder: Path,
        arguments: list[str],
        result: str,
        given: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Run the runner in ``folder`` until ``out/result`` is there.

        Raises:
            DeviceError: It is not, or the device was closed; or whatever the runner reported.
        """
        if self._closed.is_set():
            raise DeviceError(f"{self._name}: the device is closed; open it again")
        (folder / "out").mkdir()
        (folder / "runner.pyz").write_bytes(self._runner())
        (folder / "input.json").write_text(json.dumps(given or {}), encoding="utf-8")
        command = [self._python, str(folder / "runner.pyz"), *arguments, "--progress", "-"]
        lines = Lines(self._name, progress)
        with (folder / "log").open("w+b") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=str(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C comes to us, and from us, once
                )
            except OSError as error:
                raise DeviceError(
                    f"{self._name}: {self._python} cannot be started ({error.strerror}); "
                    "name a Python that can"
                ) from error
            status = self._follow(self._process, lines)
            log.seek(0)
            said = log.read().decode("utf-8", "replace")
        if not (folder / "out" / result).exists():
            raise lines.failed(status if status >= 0 else 128 - status, said)

    def _follow(self, process: subprocess.Popen[bytes], lines: Lines) -> int:
        """Pass the runner's lines on until it ends; interrupted, it may first write what it has."""
        assert process.stdout is not None
        interrupted = False
        try:
            while True:
                try:
                    for line in iter(process.stdout.readline, b""):
                        lines.read(line.decode("utf-8", "replace"))
                    return process.wait()
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    self._end(signal.SIGTERM)
        finally:
            if process.poll() is None:
                self._end(signal.SIGKILL)
                process.wait()
            process.stdout.close()
            self._process = None

    def _end(self, kind: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, kind)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
