"""Devices that have a name: one small JSON file of the user's, beside their other settings."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from deploy.errors import ConfigError, DeviceError, StorageError
from deploy.whole_file import alone_in, write_whole

PYTHON = "python3"
RESERVED = ("local",)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Entry:
    """A named device: its ``ssh://`` URL, the Python to use there, the folder to work in.

    ``jump`` is what ``ssh -J`` takes, ``ssh_config`` a configuration instead of the user's own.
    """

    name: str
    url: str
    python: str = PYTHON
    folder: str | None = None
    jump: str | None = None
    ssh_config: str | None = None


def default_path() -> Path:
    """``$XDG_CONFIG_HOME/compress-deploy/devices.json``."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    return base.expanduser() / "compress-deploy" / "devices.json"


class Inventory:
    """The named devices in a file; one that does not exist yet holds none."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()

    def entries(self) -> tuple[Entry, ...]:
        """All devices by name.

        Raises:
            ConfigError: The file is not one of ours; says where it is wrong.
            StorageError: It cannot be read.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ConfigError(f"{self.path}: not JSON ({error}); mend or remove it") from error
        if not isinstance(content, dict) or not all(isinstance(e, dict) for e in content.values()):
            raise ConfigError(
                f"{self.path}: must be an object that maps names to devices; mend or remove it"
            )
        accepted = [field.name for field in dataclasses.fields(Entry) if field.name != "name"]
        for name, given in content.items():
            wrong = sorted(set(given) - set(accepted))
            if wrong or "url" not in given:
                problem = f"unknown {wrong}" if wrong else "it has no url"
                raise ConfigError(f"{self.path}: {name}: {problem}; a device has {accepted}")
            texts = [given.get("url"), given.get("python", PYTHON)]
            options = [given.get(key) for key in ("folder", "jump", "ssh_config")]
            texts += [option for option in options if option is not None]
            if not all(isinstance(text, str) for text in texts):
                raise ConfigError(f"{self.path}: {name}: every value has to be a text")
        return tuple(Entry(name=name, **given) for name, given in sorted(content.items()))

    def find(self, name: str) -> Entry:
        """The device of that name.

        Raises:
            DeviceError: There is none; names the nearest, or all.
        """
        entries = {entry.name: entry for entry in self.entries()}
        if name in entries:
            return entries[name]
        known = [*RESERVED, *entries]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)};"
        raise DeviceError(
            f"device {name!r} is not known; {hint} give one of them or ssh://user@host, or name one "
            "with: compress-deploy device add"
        )

    def add(self, entry: Entry, *, replace: bool = False) -> None:
        """Keep a device under its name.

        Several processes may add and remove at the same time.

        Raises:
            ConfigError: The name is taken, reserved or not one.
            StorageError: The file cannot be read or written.
        """
        if not _NAME.fullmatch(entry.name) or entry.name in RESERVED:
            raise ConfigError(
                f"device name {entry.name!r}: give letters, digits, '.', '_' or '-', beginning with "
                f"a letter or digit, and none of {list(RESERVED)}"
            )
        with self._alone():
            entries = {known.name: known for known in self.entries()}
            if entry.name in entries and not replace:
                raise ConfigError(
                    f"device {entry.name!r} is {entries[entry.name].url} already; "
                    "choose another name, or add --replace"
                )
            self._write({**entries, entry.name: entry})

    def remove(self, name: str) -> Entry:
        """Forget a device.

        Raises:
            DeviceError: There is none of that name.
            StorageError: The file cannot be read or written.
        """
        if name in RESERVED:
            raise DeviceError(f"device {name!r} is always there; it has no entry to remove")
        self.find(name)  # without one there may be no folder to lock either
        with self._alone():
            removed = self.find(name)
            self._write({entry.name: entry for entry in self.entries() if entry.name != name})
        return removed

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep everybody else from changing the file between reading and writing it."""
        folder = self.path.parent
        with contextlib.ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone_in(folder))
            except OSError as error:
                raise StorageError(
                    f"{folder}: the list of devices cannot be changed there ({error.strerror}); "
                    "nothing was changed, set XDG_CONFIG_HOME to a folder that can be written"
                ) from error
            yield

    def _write(self, entries: dict[str, Entry]) -> None:
        content = {}
        for name in sorted(entries):
            given = dataclasses.asdict(entries[name])
            content[name] = {k: v for k, v in given.items() if k != "name" and v is not None}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.path, text, "the list of devices", "nothing was changed")
