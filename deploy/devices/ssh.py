"""A board over ssh: files go there once, runs do not notice a lost connection, records come back."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Callable, Mapping

from deploy.devices.channel import ANSWER_S, CONNECT_S, Channel, ConnectionLost, TurnedAway
from deploy.devices.contents import (
    Content,
    add_built,
    block_of,
    bundle_files,
    hash_of,
    scratch_folder,
    size_of,
)
from deploy.devices.inventory import PYTHON
from deploy.devices.outcome import Lines, Progress, placed
from deploy.devices.packing import pack_runner
from deploy.devices.url import parse_url
from deploy.errors import CompressDeployError, DeviceError
from deploy.manifest import inside_path

PATIENCE_S = 600.0
FOLLOW_S = 5.0
STOPPED_WITHIN_S = 30.0
KNOCKS = 4
SKEW_S = 5.0  # clocks that differ by more are said to
_OPTIONS = {
    "BatchMode": "yes",  # never asks for anything
    "ConnectTimeout": str(CONNECT_S),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "no",  # a master of ours would outlive us; one of the user's is used
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "EscapeChar": "none",
}


class SshDevice:
    """A machine that runs sshd, Python 3.8 or newer, numpy and a runtime; nothing is installed there.

    The system's ssh connects, as the user's own configuration says.  Files are kept there under
    ``folder`` by their content, so that only what changed travels again; a run has a process of its
    own there, and ``patience_s`` is how long a lost connection is sought again before it is given
    up.  What a run wrote there is removed unless ``keep``.
    """

    kind = "ssh"

    def __init__(
        self,
        host: str,
        *,
        user: str | None = None,
        port: int | None = None,
        name: str | None = None,
        python: str = PYTHON,
        folder: str | None = None,
        jump: str | None = None,
        ssh_config: str | None = None,
        keep: bool = False,
        ssh: str = "ssh",
        patience_s: float = PATIENCE_S,
        runner: Callable[[], bytes] = pack_runner,
    ) -> None:
        self._name = name or (f"{user}@{host}" if user else host)
        self._python, self._folder, self._keep = python, folder, keep
        self._patience_s, self._runner = patience_s, runner
        self._arguments = [ssh, "-T"]
        for option, value in _OPTIONS.items():
            self._arguments += ["-o", f"{option}={value}"]
        for flag, given in (("-F", ssh_config), ("-J", jump), ("-p", port), ("-l", user)):
            if given is not None:
                self._arguments += [flag, str(given)]
        self._arguments += ["--", host]
        self._channel: Channel | None = None
        self._hello: Mapping[str, Any] = {}
        self._skew_s, self._given_up = 0.0, False
        self._closed = threading.Event()
        self._at_work = threading.Lock()

    @classmethod
    def from_url(cls, url: str, **settings: Any) -> SshDevice:
        """A device at ``ssh://[user@]host[:port]``; settings as in the constructor.

        Raises:
            ConfigError: It is no such URL, or holds a password.
        """
        host, user, port = parse_url(url)
        return cls(host, user=user, port=port, **{"name": url, **settings})

    @property
    def name(self) -> str:
        return self._name

    @property
    def ssh_processes(self) -> tuple[int, ...]:
        """Process numbers of the ssh processes that this device holds: one or none."""
        channel = self._channel
        return (channel.pid,) if channel is not None else ()

    def check(self, needs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._at_work:
            try:
                problems = self._lacking()
                if problems:
                    hello = self._hello
                    found: dict[str, Any] = {
                        "ready": False,
                        "problems": problems,
                        "environment": {"python": hello["python"], "machine": hello["machine"]},
                        "runtimes": dict.fromkeys(hello["runtimes"]),
                        "disk": {"folder": hello["folder"], "free_bytes": hello["free_bytes"]},
                    }
                else:
                    arguments = ["check", "--json", "--out", "out/check.json", "--dir", "../.."]
                    arguments += ["--needs", "input.json"]
                    with scratch_folder() as folder:
                        path = self._job(arguments, {}, folder / "check.json", needs)
                        found = json.loads(path.read_text(encoding="utf-8"))
            finally:
                self._rest()
        return self._placed(found)

    def bench(
        self, bundle: Path, request: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        asked = {**request, "device": self._name, "device_kind": self.kind}
        arguments = ["bench", "bundle", "--request", "input.json", "--out", "out/record.json"]
        with self._at_work:
            try:
                self._require()
                with scratch_folder() as folder:
                    result = folder / "record.json"
                    self._job(arguments, bundle_files(bundle), result, asked, progress)
                    text = result.read_text(encoding="utf-8")
            finally:
                self._rest()
        return self._placed(json.loads(text))

    def build(
        self, bundle: Path, settings: Mapping[str, Any], progress: Progress | None = None
    ) -> dict[str, Any]:
        arguments = ["build", "bundle", "--settings", "input.json", "--out", "out"]
        with self._at_work:
            try:
                self._require()
                with scratch_folder() as folder:
                    result = folder / "build.json"
                    self._job(arguments, bundle_files(bundle), result, settings, progress)
                    return add_built(Path(bundle), folder)
            finally:
                self._rest()

    def close(self) -> None:
        """End the connection; work in another thread is stopped there first, and returns."""
        self._closed.set()
        if self._at_work.acquire(blocking=False):
            self._rest()
            self._at_work.release()

    def _placed(self, found: dict[str, Any]) -> dict[str, Any]:
        """With name and place; times of a clock that is wrong become those of this machine."""
        if abs(self._skew_s) > SKEW_S and "created" in found:
            created = datetime.fromisoformat(found["created"]) - timedelta(seconds=self._skew_s)
            found["created"] = created.isoformat(timespec="seconds")
        skew_s = round(self._skew_s, 1) if abs(self._skew_s) > SKEW_S else 0.0
        return placed(found, self._name, self.kind, clock_skew_s=skew_s)

    def _lacking(self) -> list[str]:
        """What has to be installed there before anything runs, each with how."""
        if self._closed.is_set():
            raise DeviceError(f"{self._name}: the device is closed; open it again")
        self._connected()
        lacks = [] if self._hello["numpy"] else ["numpy"]
        if not self._hello["runtimes"]:
            lacks.append("onnxruntime")  # the one that pip can install everywhere
        if not lacks:
            return []
        python, names = self._hello["executable"], " ".join(lacks)
        other = "" if self._hello["runtimes"] else " (or one that has tensorrt)"
        return [
            f"not installed there: {', '.join(lacks)}; install with {python} -m pip install {names}, "
            f"or name another Python with --python{other}"
        ]

    def _require(self) -> None:
        problems = self._lacking()
        if problems:
            raise DeviceError(f"{self._name}: {'; '.join(problems)}")

    def _job(
        self,
        arguments: list[str],
        files: Mapping[str, Content],
        result: Path,
        given: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Copy, start, follow, fetch, clean: ``result`` and all that the runner wrote beside it."""
        job, lines = uuid.uuid4().hex, Lines(self._name, progress)
        names = self._copy({**files, "runner.pyz": self._runner()}, progress)
        ended = self._given_up = False
        try:
            arguments = [*arguments, "--progress", "progress"]
            self._ask("start", job=job, files=names, input=given or {}, arguments=arguments)
            status = self._follow(job, lines)
            ended = True
            written, _ = self._ask("files", job=job)
            if result.name not in written["files"]:
                raise lines.failed(status, written["log"], written["free_bytes"])
            for name, size in written["files"].items():
                self._fetch(job, name, int(size), result.parent / inside_path(result.parent, name))
            return result
        finally:
            self._clean(job, ended)

    def _copy(self, files: Mapping[str, Content], progress: Progress | None) -> dict[str, str]:
        """Send what is not there yet; names inside the job's folder to the hashes of the files."""
        names = {inside: hash_of(content) for inside, content in files.items()}
        wanted = {names[inside]: content for inside, content in files.items()}
        sizes = {name: size_of(content) for name, content in wanted.items()}
        answer, _ = self._ask("have", files=sizes)
        held: dict[str, int] = dict(answer["held"])
        missing = sum(sizes.values()) - sum(held.values())
        for name, content in wanted.items():
            while held[name] < sizes[name]:
                if self._closed.is_set():
                    raise DeviceError(f"{self._name}: closed while files were copied")
                if progress is not None:
                    left = sum(sizes.values()) - sum(held.values())
                    progress("copy to the device", max(0.0, 1 - left / missing))
                block = block_of(content, held[name])
                answer, _ = self._ask("put", block, name=name, size=sizes[name], offset=held[name])
                held[name] = int(answer["held"])
        return names

    def _follow(self, job: str, lines: Lines) -> int | None:
        """Pass progress on until the job has ended: its exit status, ``None`` if nobody knows it.

        Closed from another thread or interrupted, the runner is asked to end and write what it has;
        it is ended when that takes too long.
        """
        offset, stopping_since_s = 0, None
        while True:
            try:
                if self._closed.is_set() and stopping_since_s is None:
                    stopping_since_s = self._stop(job)
                answer, text = self._ask("follow", job=job, offset=offset, for_s=FOLLOW_S)
                lines.read(text.decode("utf-8", "replace"))
            except KeyboardInterrupt:
                if stopping_since_s is not None:
                    raise
                stopping_since_s = self._stop(job)
                continue
            offset = int(answer["offset"])
            if not text and (answer["end"] is not None or not answer["alive"]):
                return None if answer["end"] is None else int(answer["end"])
            given_s = 0.0 if stopping_since_s is None else time.monotonic() - stopping_since_s
            if given_s > STOPPED_WITHIN_S:
                self._ask("stop", job=job, kill=True)

    def _stop(self, job: str) -> float:
        self._ask("stop", job=job)
        return time.monotonic()

    def _fetch(self, job: str, name: str, size_bytes: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while file.tell() < size_bytes:
                _, block = self._ask("fetch", job=job, name=name, offset=file.tell())
                if not block:
                    raise DeviceError(
                        f"{self._name}: {name} ends after {file.tell()} of {size_bytes} bytes; "
                        "somebody changed it while it was fetched"
                    )
                file.write(block)

    def _clean(self, job: str, ended: bool) -> None:
        """Leave nothing running and, unless asked to, nothing lying there; as far as it answers."""
        if self._given_up:
            return
        try:
            if not ended:
                self._connected().ask("stop", job=job, kill=True)
            if not self._keep:
                self._connected().ask("clean", job=job)
        except (ConnectionLost, CompressDeployError):
            self._rest()

    def _ask(self, do: str, data: bytes = b"", **message: Any) -> tuple[Mapping[str, Any], bytes]:
        """The far side's answer, over a new connection where the old one has gone.

        Raises:
            DeviceError: The far side said no, or did not come back within ``patience_s``.
        """
        until_s, pause_s = None, 0.2
        while True:
            try:
                return self._connected().ask(do, data, wait_s=ANSWER_S, **message)
            except ConnectionLost as lost:
                self._rest()
                if until_s is None:
                    until_s = time.monotonic() + self._patience_s
                if time.monotonic() + pause_s > until_s or self._closed.is_set():
                    self._given_up = True
                    raise DeviceError(
                        f"{self._name}: the connection was lost ({lost}) and not regained within "
                        f"{self._patience_s:g} s; a run that was started goes on there"
                    ) from None
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, 15.0)
            except DeviceError:
                raise
            except BaseException:  # interrupted half-way: the next answer would be to this question
                self._rest()
                raise

    def _connected(self) -> Channel:
        """The connection; the first one has to succeed at once, but may knock again."""
        knocks = 0
        while self._channel is None:
            try:
                channel = Channel(self._name, self._arguments, self._python)
                self._greet(channel)
            except ConnectionLost as lost:
                if self._hello:
                    raise
                knocks += 1
                if not isinstance(lost, TurnedAway) or knocks == KNOCKS:
                    raise DeviceError(f"{self._name}: {lost}") from None
                self._closed.wait(random.uniform(0.3, 0.8) * knocks)  # not all again at once
                continue
            self._channel = channel
        return self._channel

    def _greet(self, channel: Channel) -> None:
        try:
            asked_s = time.time()
            hello, _ = channel.ask("hello", folder=self._folder)
        except BaseException:
            channel.close()
            raise
        self._skew_s = hello["now_s"] - (asked_s + time.time()) / 2
        self._hello = hello

    def _rest(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
