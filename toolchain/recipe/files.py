"""The files that a recipe names, wherever it names them: as absolute paths, by place, and without paths.

A field of type ``Path`` names a file, and so does a field ``file``: ``net.py:build`` is a function in one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toolchain.recipe.errors import Keys


def absolute(value: Any, keys: Keys, base: Callable[[Keys], Path]) -> Any:
    """``value`` with every relative path in it made absolute; ``base`` says where each starts."""
    if isinstance(value, Path):
        return (base(keys) / value.expanduser()).resolve()
    if isinstance(value, str) and keys[-1:] == ("file",):
        path, _, function = value.rpartition(":")
        return f"{absolute(Path(path), keys, base)}:{function}"
    if isinstance(value, list):
        return [absolute(entry, (*keys, n), base) for n, entry in enumerate(value)]
    if isinstance(value, dict):
        return value | {key: absolute(model, (*keys, key), base) for key, model in _models(value)}
    if isinstance(value, BaseModel):
        old = {name: getattr(value, name) for name in type(value).model_fields}
        new = {name: absolute(field, (*keys, name), base) for name, field in old.items()}
        return value.model_copy(update={name: new[name] for name in new if new[name] != old[name]})
    return value


def named_files(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Path]]:
    """Every file or folder that ``value`` names, with the place where it does."""
    if isinstance(value, Path):
        yield keys, value
    elif isinstance(value, str) and keys[-1:] == ("file",):
        yield keys, Path(value.rpartition(":")[0])
    elif isinstance(value, list):
        for position, entry in enumerate(value):
            yield from named_files(entry, (*keys, position))
    elif isinstance(value, dict):
        for key, entry in _models(value):
            yield from named_files(entry, (*keys, key))
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from named_files(getattr(value, name), (*keys, name))


def content_hash(value: Any) -> str:
    """What the named files hold, as one hash; empty where none is named."""
    files = [path for _, path in named_files(value) if path.is_file()]
    return hashlib.sha256(b"".join(_digest(path) for path in files)).hexdigest() if files else ""


def portable(model: BaseModel) -> dict[str, Any]:
    """``model`` as JSON with the names of files where it had their paths on this machine."""
    record = model.model_dump(mode="json")
    for keys, path in named_files(model):
        section: Any = record
        for key in keys[:-1]:
            section = section[key]
        given = str(section[keys[-1]])
        section[keys[-1]] = given.replace(str(path), path.name)
    return record


def _models(entries: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The entries of a mapping that are models or paths; others, e.g. arguments, name no files."""
    return [(key, entry) for key, entry in entries.items() if isinstance(entry, BaseModel | Path)]


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
