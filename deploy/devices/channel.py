"""One ssh process, and questions to ``farside`` through it: the only place that starts ssh.

The system's OpenSSH client does it, with the user's own configuration, keys, agent, jump hosts and
host keys.  It is never allowed to ask for anything.  One process carries files, commands and
progress, so nothing has to be multiplexed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from deploy.devices import farside
from deploy.errors import DeviceError, MissingDependency

CONNECT_S = 10
ANSWER_S = 60.0
NOISE_BYTES = 1 << 16  # what a login script may say before the far side speaks

# Readable by any Python, so that one that is too old can be told so.
_BOOTSTRAP = (
    "import sys;v=sys.version_info;"
    'v[0]*100+v[1]<308 and sys.exit("compress-deploy: python is %d.%d"%v[:2]);'
    'exec(compile(sys.stdin.buffer.read({size}).decode("utf-8"),"farside","exec"))'
)

# What OpenSSH says, in the order in which it is looked for, and what to do about it.
_REFUSED = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed since it was last seen; if the device was set up anew, forget the "
        "old key with: ssh-keygen -R HOST; if it was not, somebody else may be answering",
    ),
    (
        "Host key verification failed",
        "its host key is not known; look at it and accept it once with: ssh HOST",
    ),
    (
        "Permission denied",
        "it refused to let this user in; passwords are not used: install a key with ssh-copy-id, "
        "or load it with ssh-add",
    ),
    ("Too many authentication failures", "it refused the keys offered; name one in ~/.ssh/config"),
    ("Bad owner or permissions", "ssh does not trust its own configuration; mend what it names"),
    ("Can't open user config file", "the ssh configuration cannot be read; check --ssh-config"),
    ("Bad configuration option", "the ssh configuration has an error; check with: ssh -G HOST"),
)
_ABSENT = (  # may be better in a moment
    ("Could not resolve hostname", "there is no host of that name; check the name or the network"),
    ("Connection refused", "nothing listens there; check the port and that sshd runs"),
    ("timed out", "it does not answer; check that it is on and reachable"),
    ("No route to host", "there is no way to it; check that it is on and reachable"),
    ("Network is unreachable", "there is no way to it; check the network"),
)

_CLOSED = ("kex_exchange_identification", "Connection closed by", "Connection reset by")


class ConnectionLost(Exception):
    """There is no connection, or not any more; a later one may do better.  The text says why."""


class TurnedAway(ConnectionLost):
    """Nobody was let in: an sshd that many knock on at once closes the door on some of them."""


class Channel:
    """A connection to the far side.

    Raises:
        MissingDependency: There is no ssh.
        DeviceError: The far side refuses, or has no suitable Python: trying again does not help.
        ConnectionLost: It cannot be reached; ``TurnedAway`` if it can be, but was too busy.
    """

    def __init__(self, where: str, arguments: Sequence[str], python: str) -> None:
        program = Path(farside.__file__).read_bytes()
        bootstrap = _BOOTSTRAP.format(size=len(program))
        command = [*arguments, f"exec {_as_word(python)} -c {shlex.quote(bootstrap)}"]
        self._where, self._python = where, python
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as the process
        self._unread = b""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, "LC_ALL": "C"},  # its messages are understood in English
                start_new_session=True,  # Ctrl-C is ours: the device has to be told through ssh
            )
        except FileNotFoundError:
            self._stderr.close()
            raise MissingDependency(
                f"{where}: there is no program {arguments[0]!r}; install the OpenSSH client"
            ) from None
        try:
            self._write(program)
            self._greet()
        except ConnectionLost:
            self._process.wait()
            said = self._said()
            self.close()
            raise self._explained(said) from None
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(
        self, do: str, data: bytes = b"", *, wait_s: float = ANSWER_S, **message: Any
    ) -> tuple[Mapping[str, Any], bytes]:
        """What the far side answers.

        Raises:
            ConnectionLost: There was no answer within ``wait_s``, or the connection has ended.
            DeviceError: It could not do what was asked; the message is the far side's.
        """
        text = json.dumps({"do": do, "count": len(data), **message}).encode("utf-8")
        self._write(text + b"\n" + data)
        until = time.monotonic() + wait_s
        try:
            answer: dict[str, Any] = json.loads(self._line(until).decode("utf-8"))
        except ValueError:
            raise ConnectionLost("its answer made no sense") from None
        block = self._take(int(answer.get("count", 0)), until)
        if "error" in answer:
            raise DeviceError(f"{self._where}: {answer['error']}")
        return answer, block

    def close(self) -> None:
        """End the connection; the ssh process is gone afterwards."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=1.0)  # the far side ends when there is nothing to read
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _greet(self) -> None:
        """Skip what a login script prints, up to the far side's first word."""
        until, skipped = time.monotonic() + 2 * CONNECT_S + ANSWER_S, 0
        while True:
            line = self._line(until)
            if line.rstrip(b"\r\n").endswith(farside.READY.encode()):
                return
            skipped += len(line)
            if skipped > NOISE_BYTES:
                raise DeviceError(
                    f"{self._where}: its login scripts print without an end; "
                    "make them quiet for connections without a terminal"
                )

    def _explained(self, said: str) -> Exception:
        status = self._process.returncode
        for words, remedy in _REFUSED:
            if words in said:
                return DeviceError(f"{self._where}: {remedy}")
        for words, remedy in _ABSENT:
            if words in said:
                return ConnectionLost(remedy)
        last = said.splitlines()[-1] if said else "it said nothing"
        if "compress-deploy: python is" in said:
            return DeviceError(
                f"{self._where}: {self._python} there is {last.rpartition(' ')[2]}; Python 3.8 or "
                "newer is needed: install one and name it with --python"
            )
        if status in (126, 127):
            return DeviceError(
                f"{self._where}: there is no {self._python} there ({last}); install Python 3.8 or "
                "newer, or say where it is with --python"
            )
        lost = TurnedAway if any(words in said for words in _CLOSED) else ConnectionLost
        return lost(
            f"ssh ended with status {status} before it answered ({last}); check with: ssh -v HOST"
        )

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode("utf-8", "replace").strip()

    def _write(self, data: bytes) -> None:
        stdin = self._process.stdin
        try:
            if stdin is None or stdin.closed:
                raise ConnectionLost("it is closed")
            stdin.write(data)
            stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: closed from another thread
            raise ConnectionLost(str(error)) from None

    def _line(self, until_s: float) -> bytes:
        while b"\n" not in self._unread:
            self._read(until_s)
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _take(self, count: int, until_s: float) -> bytes:
        while len(self._unread) < count:
            self._read(until_s)
        block, self._unread = self._unread[:count], self._unread[count:]
        return block

    def _read(self, until_s: float) -> None:
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            raise ConnectionLost("it is closed")
        waiting = select.poll()
        waiting.register(stdout, select.POLLIN | select.POLLHUP)
        if not waiting.poll(max(0.0, until_s - time.monotonic()) * 1e3):
            self._process.kill()
            raise ConnectionLost("it does not answer any more")
        block = os.read(stdout.fileno(), 1 << 16)
        if not block:
            raise ConnectionLost(self._said().splitlines()[-1] if self._said() else "it has ended")
        self._unread += block


def _as_word(path: str) -> str:
    """A path for the far side's shell: taken as it is, but for a home folder (``~``, ``~user``)."""
    home, slash, rest = path.partition("/")
    if not slash or not re.fullmatch(r"~[A-Za-z0-9._-]*", home):
        return shlex.quote(path)
    return f"{home}/{shlex.quote(rest)}"
