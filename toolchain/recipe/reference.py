"""The reference of recipes, written from the types that read them.

python -m toolchain.recipe.reference docs/recipes.md
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from deploy.errors import ConfigError, StorageError
from toolchain.chain import standard_chain
from toolchain.distillation.config import Distil, DistilLoss
from toolchain.distillation.teachers.config import KINDS
from toolchain.recipe.names import named
from toolchain.recipe.schema import (
    AugmentConfig,
    DataConfig,
    Goals,
    ModelConfig,
    PreprocessConfig,
    Recipe,
    StructureConfig,
)
from toolchain.stages import STAGES, Quantizing
from toolchain.training.config import Training

COMMAND = "python -m toolchain.recipe.reference docs/recipes.md"
SHARED: Mapping[type[BaseModel], str] = {Training: "training", Quantizing: "quantizing"}
_TYPES = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_AGREEING = {
    "classes": "vectors of as many values",
    "shape": "shape",
    "positions": "positions",
    "batch": "nothing",
    "exit": "classes; a feature gets an exit branch",
    "pair": "channels, at two spots each",
    "own": "nothing; joins the shapes itself",
}
_SECTIONS: Mapping[str, tuple[str, type[BaseModel]]] = {
    model.__name__: (title, model)
    for title, model in (
        ("model", ModelConfig),
        ("data.preprocess", PreprocessConfig),
        ("data.augment", AugmentConfig),
        ("goals", Goals),
        ("structure", StructureConfig),
        ("distil", Distil),
        ("distil.losses", DistilLoss),
    )
}


def reference() -> str:
    """The whole page, in Markdown."""
    kinds = get_args(DataConfig)
    chain = " → ".join(f"`{stage.stage}`" for stage in standard_chain())
    parts = [
        "# What a recipe can say",
        f"Written by `{COMMAND}` from the types that read recipes. A key that is not here is an "
        "error that names the nearest one that is. `compress-deploy recipe show RECIPE --resolved` "
        "prints every value that a recipe comes to, `compress-deploy recipe schema` a JSON Schema "
        "for editors.",
        *_section("The recipe", Recipe),
        *_section("model", ModelConfig),
        "Built-in networks: " + _names(name for name, _ in named("models") if name) + ".",
        *_section("data", kinds[0].__base__),
        *(part for kind in kinds for part in _variant("data", "kind", kind, kinds[0].__base__)),
        *_section("data.preprocess", PreprocessConfig),
        *_section("data.augment", AugmentConfig),
        *_section("goals", Goals),
        *_section("structure", StructureConfig),
        _bullets(f"`{name}`: {about}" for name, about in named("importances")),
        "## stages",
        f"A list, run in its order; each entry names its `stage`. Without it: {chain}.",
        *(part for stage in STAGES for part in _variant("stages", "stage", stage, *SHARED)),
        *(part for model, title in SHARED.items() for part in _section(title, model)),
        *_section("distil", Distil),
        "## controllers",
        "What `controller` and `controller_options` can say. A stage under a `dean` leaves "
        "`dean.safetensors` in its artifact, `runs/artifacts/STAGE-KEY/`: `{load: FILE, frozen: true}` "
        "replays that dean, state by state. `replay` with `{log: FILE}`, a log of `runs/NAME/logs/`, "
        "repeats its strengths, step by step.",
        *_controllers(),
        *_section("distil.losses", DistilLoss),
        "## losses",
        "What must agree between the two networks' features is brought to agree by an adapter. A strength is "
        "what is customary in the literature; nothing applies it silently.",
        _losses(),
        "## distil.teachers",
        "A mapping from names of your choice, which the losses then use, to teachers; each says its `kind`.",
        *(part for kind in KINDS for part in _variant("distil.teachers", "kind", kind)),
    ]
    return "\n\n".join(parts).replace("``", "`") + "\n"


def _controllers() -> Iterator[str]:
    from toolchain.distillation.controllers.controller import CONTROLLERS

    for name, entry in CONTROLLERS.items():
        yield f"### controllers: {name}"
        about = f"{entry.about[0].upper()}{entry.about[1:]}."
        yield f"{about} Source: {entry.source}." if entry.source else about
        builds = [entry.build, *getattr(entry.build, "__mro__", ())]
        told = {k: v for one in reversed(builds) for k, v in _listed(one, "Args").items()}
        alike = [
            one for one in CONTROLLERS if one > name and CONTROLLERS[one].options == entry.options
        ]
        if entry.options and alike:
            yield f"Options: those of `{alike[0]}`."
        elif entry.options:
            lines = ["| option | default | |", "| --- | --- | --- |"]
            for option, value in entry.options.items():
                required = value is inspect.Parameter.empty
                default = (
                    "required" if required else "none" if value is None else f"`{_said(value)}`"
                )
                lines.append(f"| `{option}` | {default} | {told.get(option, '')} |")
            yield "\n".join(lines)


def _said(value: Any) -> str:
    return json.dumps(value).strip('"')


def _losses() -> str:
    from toolchain.distillation.losses.entry import LOSSES

    lines = [
        "| loss | what it is | must agree | options | strength | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in LOSSES.items():
        equation = entry.equation.replace("|", r"\|")
        options = ", ".join(
            f"`{option}: {_said(value)}`"
            for option, value in entry.options.items()
            if option != "samples"  # known from the data
        )
        strength = "" if entry.default_strength is None else f"{entry.default_strength:,g}"
        cells = [f"`{name}`", equation, _AGREEING[entry.match], options, strength, entry.source]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}"
    yield _about(model)
    yield _table(_properties(model), _explained(model))


def _variant(
    section: str, key: str, model: type[BaseModel], *bases: type[BaseModel]
) -> Iterator[str]:
    """One kind of an entry, without the fields that it has from ``bases`` unchanged."""
    own = _properties(model)
    name = own.pop(key)["const"]
    yield f"### {section}: {name}"
    used = [base for base in bases if issubclass(model, base) and base in SHARED]
    for base in bases:
        if issubclass(model, base):
            inherited = _properties(base)
            own = {field: told for field, told in own.items() if told != inherited.get(field)}
    also = " and ".join(f"[{SHARED[base]}](#{SHARED[base]})" for base in used)
    yield _about(model) + (f" Also takes the settings of {also}." if also else "")
    if own:
        yield _table(own, _explained(model))


def _about(model: type[BaseModel]) -> str:
    """What a docstring says before it lists attributes."""
    text = (inspect.getdoc(model) or "").partition("\nAttributes:")[0]
    return " ".join(text.split())


def _properties(model: type[BaseModel]) -> dict[str, Any]:
    """The fields as JSON Schema, with whether each is required."""
    schema = model.model_json_schema()
    needed = set(schema.get("required", ()))
    return {
        name: {**told, "required": name in needed} for name, told in schema["properties"].items()
    }


def _explained(model: type[BaseModel]) -> dict[str, str]:
    """Field to sentence, from descriptions and from the docstrings' lists of attributes."""
    said: dict[str, str] = {}
    for base in reversed(model.__mro__):
        said |= _listed(base, "Attributes")
    described = {name: field.description for name, field in model.model_fields.items()}
    return said | {name: text for name, text in described.items() if text}


def _listed(described: object, section: str) -> dict[str, str]:
    """Name to sentence, from a section of a docstring."""
    listed = (inspect.getdoc(described) or "").partition(f"\n{section}:")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found}


def _table(properties: Mapping[str, Any], explained: Mapping[str, str]) -> str:
    lines = ["| key | accepted | default | |", "| --- | --- | --- | --- |"]
    for name, told in properties.items():
        cells = [f"`{name}`", _accepted(told), _default(told), explained.get(name, "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _accepted(told: Mapping[str, Any]) -> str:
    """A JSON Schema in words."""
    if "$ref" in told:
        title, _ = _referred(told)
        return f"see [{title}](#{title.replace('.', '')})"
    if "oneOf" in told:
        return f"one of {_names(sorted(told['discriminator']['mapping']))}"
    if "anyOf" in told:
        kinds = [_accepted(one) for one in told["anyOf"] if one.get("type") != "null"]
        nullable = any(one.get("type") == "null" for one in told["anyOf"])
        null = ["`null`"] if nullable and told.get("default") is not None else []
        return " or ".join([*kinds, *null])
    if "enum" in told:
        return _names(told["enum"])
    if "const" in told:
        return f"`{json.dumps(told['const']).strip(chr(34))}`"
    if "prefixItems" in told:
        return f"list of {len(told['prefixItems'])}: {_accepted(told['prefixItems'][0])}"
    if told.get("type") == "array":
        return f"list: {_accepted(told['items'])}"
    if told.get("type") == "object":
        values = told.get("additionalProperties")
        return f"mapping: {_accepted(values)}" if isinstance(values, dict) else "mapping"
    if told.get("format") == "path":
        return "path"
    kind = told.get("type", "anything")
    bounds = [f"{sign} {told[key]:,}" for key, sign in _BOUNDS.items() if key in told]
    return " ".join([_TYPES.get(kind, kind), ", ".join(bounds)]).rstrip()


def _default(told: Mapping[str, Any]) -> str:
    if told["required"]:
        return "required"
    if "default" not in told:
        return "the standard chain"
    default = told["default"]
    for kind in (told, *told.get("anyOf", ())):
        if "$ref" in kind and default is not None:
            _, model = _referred(kind)
            if default == model().model_dump(mode="json"):
                return "its defaults"
    return "none" if default is None else f"`{json.dumps(default)}`"


def _referred(told: Mapping[str, Any]) -> tuple[str, type[BaseModel]]:
    return _SECTIONS[told["$ref"].rpartition("/")[2]]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the page to the file named on the command line."""
    try:
        if len(arguments) != 1:
            raise ConfigError(f"{len(arguments)} files given; accepted is one; try {COMMAND}")
        out = Path(arguments[0])
        try:
            out.write_text(reference(), encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{out}: cannot be written ({error.strerror}); give a file in a folder that can"
            ) from error
    except (ConfigError, StorageError) as error:
        print(f"recipe_reference: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
