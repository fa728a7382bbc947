"""The network that a recipe names: a built-in one, or a function in the user's own Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

from deploy.errors import CompressDeployError, ConfigError
from toolchain.models import registry
from toolchain.models.arguments import call_form

if TYPE_CHECKING:
    from toolchain.recipe.network import NetworkOrigin
    from toolchain.recipe.schema import ModelConfig


def build_model(config: ModelConfig | NetworkOrigin, base_dir: Path) -> nn.Module:
    """Build the network with freshly initialised weights; a relative file is below ``base_dir``.

    Raises:
        ConfigError: The name, the file, the function or its arguments are not usable.
    """
    if config.builtin is not None:
        return registry.build(config.builtin, **config.args)
    if config.file is None:
        given = getattr(config, "onnx", None)
        raise ConfigError(
            f"model.onnx: {given} holds a graph that cannot be cut or trained; accepted here: "
            "builtin or file; `compress-deploy run` quantizes an ONNX file as it is"
        )
    path, _, function = config.file.rpartition(":")
    return _build_from_file(Path(base_dir) / path, function, config.args)


def _build_from_file(path: Path, function: str, args: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise ConfigError(
            f"model.file: {path} does not exist; accepted: a Python file and a function in it, "
            "e.g. net.py:build; relative paths start at the recipe's folder"
        )
    with _importable(path.resolve().parent):
        module = _load(path.resolve())
        network = _call(path, _function(path, module, function), function, args)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"model.file: {path.name}:{function} returned {type(network).__name__}; "
            "accepted: a torch.nn.Module; return the network"
        )
    return network


def _load(path: Path) -> ModuleType:
    """Run the file as a module of its own, under a name that no other file has."""
    name = f"compress_deploy_user_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"model.file: {path.name} is not a Python file; accepted: a name that ends in .py"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises is told with its file
        del sys.modules[name]
        raise ConfigError(
            f"model.file: {path.name} cannot be imported: {_told(error)}; "
            "accepted: a file that `python FILE` runs without an error"
        ) from error
    return module


def _function(path: Path, module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    own = sorted(
        key
        for key, value in vars(module).items()
        if callable(value)
        and not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    )
    found = f"choose from {', '.join(own)}" if own else "the file defines no function of its own"
    raise ConfigError(f"model.file: {path.name} has no function {name!r}; {found}")


def _call(path: Path, function: Callable[..., Any], name: str, args: dict[str, Any]) -> Any:
    try:
        return function(**args)
    except CompressDeployError:
        raise
    except Exception as error:  # whatever the user's code raises is told with its function
        raise ConfigError(
            f"model.file: {path.name}:{name} raised {_told(error)} with model.args {args!r}; "
            f"accepted: {call_form(name, function)}"
        ) from error


def _told(error: Exception) -> str:
    """``Type: message`` on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let files of ``folder`` import each other inside the block, and leave no trace after it.

    Modules found directly in the folder are forgotten afterwards, so that the ``blocks.py`` of one
    network is not taken for that of the next; what was imported from elsewhere stays.
    """
    before = set(sys.modules)
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        siblings = {
            name
            for name in set(sys.modules) - before
            if "." not in name and _lies_in(sys.modules[name], folder)
        }
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in siblings:
                del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a top-level module is a file or a package directly in ``folder``."""
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return False
    if spec.submodule_search_locations is not None:
        return any(Path(place).parent == folder for place in spec.submodule_search_locations)
    # The user's file itself is known under its own unique name and stays.
    return (
        spec.origin is not None
        and Path(spec.origin).parent == folder
        and not module.__name__.startswith("compress_deploy_user_")
    )
