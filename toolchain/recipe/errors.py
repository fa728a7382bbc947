"""What is wrong with a recipe, in one line: where, what was given, what is accepted.

What is accepted is read from the recipe's own JSON Schema, so a message cannot disagree with the
types.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

Keys = tuple[str | int, ...]
Node = Mapping[str, Any]

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
_BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "at least {}",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
}


def dotted(keys: Keys) -> str:
    """``stages[1].epochs``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def explain(error: ValidationError, tree: Any, schema: Node) -> tuple[Keys, str]:
    """Where the most telling problem is, and the line about it."""
    # A misspelt key is also reported as the absence of the right one; the misspelling says more.
    problem = min(error.errors(), key=lambda record: record["type"] != "extra_forbidden")
    kind, given = problem["type"], problem["input"]
    keys = _without_tags(problem["loc"], tree, kind, schema)
    if kind == "extra_forbidden":
        known = sorted(_properties(_at(schema, keys[:-1], tree), schema))
        return keys, f"{dotted(keys)}: unknown key; {_choices(str(keys[-1]), known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        choice = _at(schema, keys, tree, choose=False)["discriminator"]
        keys = (*keys, choice["propertyName"])
        known = sorted(choice["mapping"])
        if kind == "union_tag_not_found":
            return keys, f"{dotted(keys)}: required, and not given; accepted: {', '.join(known)}"
        tag = given[choice["propertyName"]]
        return keys, f"{dotted(keys)}: {_short(tag)} is not known; {_choices(str(tag), known)}"
    if kind == "value_error":
        return keys, f"{dotted(keys)}: {problem['ctx']['error']}"
    if kind == "missing":
        accepted = _accepted(_at(schema, keys, tree), schema)
        return keys, f"{dotted(keys)}: required, and not given; accepted: {accepted}"
    node = _at(schema, keys, tree, choose=False)
    if isinstance(given, str) and "enum" in node:
        choices = _choices(given, node["enum"])
        return keys, f"{dotted(keys)}: {_short(given)} is not known; {choices}"
    return keys, f"{dotted(keys)}: {_short(given)} given; accepted: {_accepted(node, schema)}"


def _choices(given: str, known: list[str]) -> str:
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean {lowered[near[0]]!r}? " if near else ""
    return f"{hint}accepted: {', '.join(known)}"


def _short(given: Any) -> str:
    text = json.dumps(given, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_tags(loc: Keys, tree: Any, kind: str, schema: Node) -> Keys:
    """``loc`` less what pydantic puts between the keys: the chosen member of a union."""
    keys: Keys = ()
    value = tree
    tag_read = False
    for position, key in enumerate(loc):
        choice = _at(schema, keys, tree, choose=False).get("discriminator")
        if choice and not tag_read and isinstance(value, dict):
            tag_read = value.get(choice["propertyName"]) == key
            if tag_read:
                continue
        if _inside(value, key):
            value = value[key]
        elif not (kind == "missing" and position == len(loc) - 1):
            continue
        keys, tag_read = (*keys, key), False
    return keys


def _inside(tree: Any, key: str | int) -> bool:
    if isinstance(tree, dict):
        return key in tree
    return isinstance(tree, list) and isinstance(key, int) and key < len(tree)


def _at(schema: Node, keys: Keys, tree: Any, *, choose: bool = True) -> Node:
    """The part of ``schema`` that describes ``keys``; ``tree`` decides between kinds of an entry.

    Args:
        choose: Whether the choice is also made at the last key.
    """
    node: Node = _deref(schema, schema)
    for position in range(len(keys) + 1):
        last = position == len(keys)
        if "discriminator" in node and (choose or not last):
            choice = node["discriminator"]
            tag = tree.get(choice["propertyName"]) if isinstance(tree, dict) else None
            if tag in choice["mapping"]:
                node = _deref({"$ref": choice["mapping"][tag]}, schema)
        if last:
            break
        key = keys[position]
        members = [_deref(member, schema) for member in node.get("anyOf", [node])]
        node = {}
        for member in members:
            if isinstance(key, int) and "items" in member:
                node = _deref(member["items"], schema)
            elif key in member.get("properties", {}):
                node = _deref(member["properties"][key], schema)
            elif isinstance(member.get("additionalProperties"), dict):
                node = _deref(member["additionalProperties"], schema)
        tree = tree[key] if _inside(tree, key) else None
    return node


def _deref(node: Node, schema: Node) -> Node:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _properties(node: Node, schema: Node) -> list[str]:
    """The keys of a mapping, also where something else may stand in its place."""
    members = [_deref(member, schema) for member in node.get("anyOf", [node])]
    return list(dict.fromkeys(key for member in members for key in member.get("properties", ())))


def _accepted(node: Node, schema: Node) -> str:
    """What a part of the schema accepts, in words."""
    node = _deref(node, schema)
    if "anyOf" in node:
        return ", or ".join(_accepted(member, schema) for member in node["anyOf"])
    if "enum" in node:
        return ", ".join(str(value) for value in node["enum"])
    if "const" in node:
        return str(node["const"])
    if "discriminator" in node:
        choice = node["discriminator"]
        return f"a mapping with {choice['propertyName']}: {', '.join(sorted(choice['mapping']))}"
    if "prefixItems" in node:
        return f"a list of {len(node['prefixItems'])}: {_accepted(node['prefixItems'][0], schema)}"
    if node.get("type") == "array":
        least = f" with at least {node['minItems']}" if node.get("minItems") else ""
        return f"a list{least} of: {_accepted(node.get('items', {}), schema)}"
    if node.get("type") == "object":
        keys = ", ".join(_properties(node, schema))
        return f"a mapping with the keys {keys}" if keys else "a mapping"
    if node.get("format") == "path":
        return "a path"
    if "pattern" in node:
        return f"text that matches {node['pattern']}"
    if node.get("minLength"):
        return "text that is not empty"
    bounds = " and ".join(word.format(node[key]) for key, word in _BOUNDS.items() if key in node)
    return " ".join(filter(None, (_TYPES.get(node.get("type", ""), "a value"), bounds)))
