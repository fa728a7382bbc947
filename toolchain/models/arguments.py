"""What a recipe passes to a network's constructor: how it is checked, and how it is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from deploy.errors import ConfigError


def call_form(name: str, function: Callable[..., Any]) -> str:
    """``name(argument, argument=default)``, without the annotations, for messages.

    >>> call_form("whole", whole)
    'whole(name, value, at_least=1)'
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return f"{name}(...)"
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return name + str(inspect.Signature(bare))


def whole(name: str, value: object, at_least: int = 1) -> int:
    """``value`` if it is a whole number of at least ``at_least``.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(
            f"model.args.{name}: {value!r} given; accepted: a whole number of at least {at_least}"
        )
    return value


def whole_list(name: str, values: object, length: int | None = None) -> tuple[int, ...]:
    """``values`` as a tuple if they are a list of positive whole numbers.

    Raises:
        ConfigError: They are not, or there are not ``length`` of them.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"model.args.{name}: {values!r} given; accepted: a list of whole numbers")
    if length is not None and len(values) != length:
        raise ConfigError(
            f"model.args.{name}: {list(values)!r} given; accepted: {length} whole numbers"
        )
    return tuple(whole(name, value) for value in values)
