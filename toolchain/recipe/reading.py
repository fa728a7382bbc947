"""From a YAML file and ``--set`` overrides to a recipe, and back to YAML.

Scalars are read by the rules of YAML 1.2 (``1e-3`` is a number, ``no`` is text), keys may not
repeat, and types are strict: ``"3"`` is not 3. Relative paths in the file start at the file's
folder, those of ``--set`` at the current directory.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deploy.errors import ConfigError
from toolchain.chain import standard_chain
from toolchain.recipe.errors import Keys, dotted, explain
from toolchain.recipe.files import absolute, named_files
from toolchain.recipe.schema import Recipe


def load_recipe(path: Path, overrides: Sequence[str] = (), *, need_files: bool = True) -> Recipe:
    """Read, override and check a recipe; its paths are absolute afterwards.

    Args:
        overrides: ``key.path=value``; a stage is named by its position or by its name.
        need_files: Whether files that the recipe names must be there; looking at it needs none.

    Raises:
        ConfigError: one line that says where, what was given and what is accepted.
    """
    tree = read_yaml(path)
    origin: dict[Keys, str] = {}
    for override in overrides:
        origin.update(_override(tree, override))

    def given_by(keys: Keys) -> str | None:
        return next((origin[keys[:n]] for n in range(len(keys) + 1) if keys[:n] in origin), None)

    def where(keys: Keys) -> str:
        override = given_by(keys)
        return f"{path}" if override is None else f"--set {override}"

    try:
        recipe = Recipe.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        keys, message = explain(error, tree, Recipe.model_json_schema())
        raise ConfigError(f"{where(keys)}: {message}") from None

    def base(keys: Keys) -> Path:
        return path.parent if given_by(keys) is None else Path()

    resolved: Recipe = absolute(recipe, (), base)
    if need_files:
        for keys, problem in _missing_files(resolved):
            raise ConfigError(f"{where(keys)}: {dotted(keys)}: {problem}")
    return resolved


def dump_recipe(recipe: Recipe, *, defaults: bool = True) -> str:
    """The recipe as YAML that ``load_recipe`` reads to an equal recipe.

    Args:
        defaults: Whether fields that nobody set are written too.
    """
    tree = recipe.model_dump(mode="json", exclude_unset=not defaults)
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises ConfigError with the line of what is wrong."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.resolve()}: no such file; give the path of a recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    if not isinstance(tree, dict):
        given = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: holds {given}; accepted: a mapping, e.g. 'name: my-recipe'")
    return tree


def parse_yaml(text: str) -> Any:
    """One YAML document of plain values; raises yaml.YAMLError, also for a key given twice."""
    try:
        tree = yaml.load(text, Loader=_Loader)
        json.dumps(tree)
    except (TypeError, ValueError, RecursionError) as error:
        raise yaml.YAMLError(f"not plain text, numbers, lists and mappings ({error})") from None
    return tree


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, keys that are text, and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is not text; put it in quotes",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice; keep one of them",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around text that ``_Loader`` would read as a number."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?[0-9]+",
    "tag:yaml.org,2002:float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
_WORDS = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}
for _tag, _pattern in _NUMBERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))
for _tag, (_pattern, _first) in _WORDS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
    line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{line}{problem}"


def _override(tree: dict[str, Any], override: str) -> dict[Keys, str]:
    """Write one ``key.path=value`` into ``tree``; returns what it added, for error messages."""
    name, equals, text = override.partition("=")
    names = name.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"--set {override}: not understood; accepted: key=value, e.g. structure.align=8"
        )
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {_yaml_problem(error)}") from None
    if names[0] == "stages" and len(names) > 1 and tree.get("stages") is None:
        tree["stages"] = [stage.model_dump(mode="json") for stage in standard_chain()]
    node: Any = tree
    keys: Keys = ()
    added: Keys | None = None
    for depth, part in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(node, list):
            key: str | int = _position(node, part, f"--set {override}: {dotted(keys)}")
        elif isinstance(node, dict):
            key = part
            if not last and node.get(key) is None:
                added = added or (*keys, key)
                node[key] = {}
        else:
            raise ConfigError(
                f"--set {override}: {dotted(keys)} is {json.dumps(node)}, which has no keys; "
                f"give {dotted(keys)}=value"
            )
        keys = (*keys, key)
        if last:
            node[key] = value
        else:
            node = node[key]
    return {added or keys: override}


def _position(entries: list[Any], part: str, where: str) -> int:
    """The entry that ``part`` means: its position, or the name of a stage that is there once."""
    if part.isdecimal():
        if int(part) < len(entries):
            return int(part)
        raise ConfigError(f"{where}: no entry {part}; accepted: 0 to {len(entries) - 1}")
    names = [entry.get("stage") if isinstance(entry, dict) else None for entry in entries]
    found = [position for position, name in enumerate(names) if name == part]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{where}: {part!r} is there {len(found)} times; accepted: {found}")
    known = [str(name) for name in names if name is not None]
    near = difflib.get_close_matches(part, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    accepted = ", ".join(known) or f"0 to {len(entries) - 1}"
    raise ConfigError(f"{where}: no entry {part!r}; {hint}accepted: {accepted}")


def _missing_files(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    if recipe.data.kind != "digits" and recipe.data.root is None:
        yield ("data", "root"), "required, and not given; write it, or pass --set data.root=PATH"
    for keys, path in named_files(recipe):
        if not path.exists():
            yield keys, f"{path} does not exist; give a path that does"
