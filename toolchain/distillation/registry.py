"""Names in a recipe, and the one thing each stands for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Generic, TypeVar

from deploy.errors import ConfigError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A dict from name to entry in which a name has one owner.

    Args:
        field: Where the name stands in a recipe, for messages: ``distil.losses.loss``.
        modules: Those that add entries; they are imported when a name is first asked for.
    """

    def __init__(self, field: str, modules: Sequence[str] = ()) -> None:
        self._field, self._modules = field, modules
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Give ``name`` to ``entry``; ValueError if it has an owner."""
        if name in self._entries:
            raise ValueError(f"{self._field}: {name!r} is already {self._entries[name]!r}")
        self._entries[name] = entry

    def look_up(self, name: str) -> Entry:
        """The entry called ``name``.

        Raises:
            ConfigError: There is none; lists those that exist and the nearest.
        """
        self._load()
        if name in self._entries:
            return self._entries[name]
        raise ConfigError(f"{self._field}: {unknown(name, self._entries)}")

    def __getitem__(self, name: str) -> Entry:
        self._load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        for module in self._modules:
            importlib.import_module(module)


def unknown(name: str, known: Mapping[str, object]) -> str:
    """Message body for a name that is not known.

    >>> unknown("klo", {"kl": 0, "at": 0})
    "unknown 'klo'; choose from ['at', 'kl']; did you mean 'kl'?"
    """
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {name!r}; choose from {sorted(known)}{hint}"
