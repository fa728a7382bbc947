"""Built-in networks by name: a dict from name to builder that refuses a second owner."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from deploy.errors import CompressDeployError, ConfigError
from toolchain.models.arguments import call_form

Builder = Callable[..., nn.Module]

# The modules that call `register`; they are imported when a name is first asked for.
_MODULES = ("cifar_resnet", "ds_cnn", "mixer", "mlp", "mobilenet", "vgg", "vit")

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Make a builder available under ``name``.

    Raises:
        ValueError: Another function already owns the name.
    """

    def enter(builder: Builder) -> Builder:
        owner = _BUILDERS.get(name)
        if owner is not None:
            raise ValueError(f"{name!r} is already registered by {owner.__module__}")
        _BUILDERS[name] = builder
        return builder

    return enter


def builders() -> dict[str, Builder]:
    """All built-in networks by name, sorted."""
    for module in _MODULES:
        importlib.import_module(f"toolchain.models.{module}")
    return dict(sorted(_BUILDERS.items()))


def names() -> tuple[str, ...]:
    """Names of all built-in networks, sorted."""
    return tuple(builders())


def build(name: str, **args: Any) -> nn.Module:
    """Build a network by name; ``forward(x_BCHW) -> logits_BC``.

    Raises:
        ConfigError: The name or an argument is unknown, or a value is not accepted.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"model.builtin: unknown {name!r}; choose from {', '.join(known)}{hint}")
    builder = _BUILDERS[name]
    _check_names(name, builder, args)
    try:
        return builder(**args)
    except CompressDeployError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model.args: {name} cannot be built from {args!r}: {type(error).__name__}: {reason}; "
            f"accepted: {call_form(name, builder)}"
        ) from error


def _check_names(name: str, builder: Builder, args: dict[str, Any]) -> None:
    accepted = inspect.signature(builder).parameters
    unknown = [key for key in args if key not in accepted]
    if unknown:
        near = difflib.get_close_matches(unknown[0], accepted, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"model.args: {name} has no argument {unknown[0]!r}; "
            f"accepted: {', '.join(accepted)}{hint}"
        )
    required = [
        key
        for key, parameter in accepted.items()
        if parameter.default is inspect.Parameter.empty and key not in args
    ]
    if required:
        raise ConfigError(f"model.args: {name} needs {', '.join(required)}; add it to the recipe")
