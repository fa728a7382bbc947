"""The variants of an ablation: what of a recipe each one replaces.

A controller's name makes a variant in which every stage that distils has that controller; ``none``
leaves those stages the labels alone. A variants file has one mapping, from names to what ``--set``
takes: a list of ``key.path=value``, or a mapping from key to value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import ConfigError
from toolchain.chain import check_order
from toolchain.distillation.teachings import Teaching, require_teachings
from toolchain.recipe.reading import load_recipe, read_yaml

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe

NONE = "none"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Variant:
    """A name, and the overrides (``key.path=value``) that make it out of the recipe."""

    name: str
    overrides: tuple[str, ...]


def of_controllers(recipe: Recipe, names: Sequence[str]) -> list[Variant]:
    """A variant for each controller; options stay with the controller that the recipe gives them to.

    Raises:
        ConfigError: A controller that is not known, or a recipe that does not distil.
    """
    from toolchain.distillation.controllers.controller import CONTROLLERS
    from toolchain.distillation.registry import unknown

    places = require_teachings(recipe)
    known: dict[str, object] = {NONE: None, **CONTROLLERS}
    made = []
    for name in names:
        if name not in known:
            raise ConfigError(f"--controllers: {unknown(name, known)}")
        made.append(Variant(name, tuple(_with_controller(places, name))))
    return made


def _with_controller(places: Iterable[Teaching], name: str) -> Iterator[str]:
    for place in places:
        if name == NONE:
            yield f"{place.key}=null"
        elif place.distil.controller != name:
            yield f"{place.key}.controller={name}"
            if place.distil.controller_options:
                yield f"{place.key}.controller_options={{}}"


def of_file(path: Path) -> list[Variant]:
    """The variants of a file, in its order.

    Raises:
        ConfigError: It cannot be read or says something else than variants.
    """
    made = []
    for name, given in read_yaml(path).items():
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: {name!r} cannot name a variant; accepted: letters, digits, '.', '_' and '-'; "
                "rename it"
            )
        made.append(Variant(name, tuple(_overrides(path, name, given))))
    if not made:
        raise ConfigError(f"{path}: holds no variant; accepted: name: [key=value, ...]; add one")
    return made


def _overrides(path: Path, name: str, given: Any) -> list[str]:
    if given is None:
        return []
    if isinstance(given, Mapping):  # JSON is YAML, so that this is what --set would be given
        return [f"{key}={json.dumps(value)}" for key, value in given.items()]
    if isinstance(given, list) and all(isinstance(each, str) for each in given):
        return given
    raise ConfigError(
        f"{path}: {name}: {json.dumps(given)[:60]} given; accepted: a list of key.path=value as --set "
        "takes them, or a mapping from key.path to value; write one of these"
    )


def chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Those called ``only``, in that order; all where nothing is said.

    Raises:
        ConfigError: Two have one name, a name that none has, or one given twice.
    """
    from toolchain.distillation.registry import unknown

    by_name: dict[str, Variant] = {}
    for variant in variants:
        if variant.name in by_name:
            raise ConfigError(
                f"ablate: two variants are called {variant.name!r}; accepted: each name once; rename "
                "one in the file, or leave it out of --controllers"
            )
        by_name[variant.name] = variant
    for name in only:
        if name not in by_name:
            raise ConfigError(f"--only: {unknown(name, by_name)}")
        if only.count(name) > 1:
            raise ConfigError(
                f"--only: {name} given twice; accepted: each name once; leave one out"
            )
    return [by_name[name] for name in only] if only else list(variants)


def baselines(variants: Sequence[Variant], given: Sequence[str]) -> list[str]:
    """What the others are compared with: as given, or ``fixed``, ``none``, or the first.

    Raises:
        ConfigError: A name that no variant has.
    """
    from toolchain.distillation.registry import unknown

    names = {variant.name: None for variant in variants}
    for name in given:
        if name not in names:
            raise ConfigError(f"--baseline: {unknown(name, names)}")
    if given:
        return list(dict.fromkeys(given))
    return [next((name for name in ("fixed", NONE) if name in names), next(iter(names)))]


def recipe_of(path: Path, overrides: Sequence[str], variant: Variant, seed: int) -> Recipe:
    """The recipe of one run.

    Raises:
        ConfigError: The variant does not fit the recipe; names the variant.
    """
    try:
        recipe = load_recipe(path, [*overrides, *variant.overrides, f"seed={seed}"])
        check_order(recipe.stages)
        return recipe
    except ConfigError as error:
        raise ConfigError(f"variant {variant.name}: {error}") from None
