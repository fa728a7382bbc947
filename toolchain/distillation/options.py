"""What a recipe says as options of a loss or a controller: types of arguments, values against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from deploy.errors import ConfigError
from toolchain.distillation.registry import unknown

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
# Of a training, after which something holds.
Until = Annotated[float, Field(gt=0, le=1)]
# Of the training part, which has to stay the larger one.
HeldOut = Annotated[float, Field(gt=0, le=0.5)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def check_options(where: str, options: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse an option that does not exist, or a value that its argument does not take.

    Args:
        where: Whose options, for messages: ``distil.losses (kl)``.
        options: As given.
        types: Those that exist, each with its type.

    Raises:
        ConfigError: Names the option, what was given and what is accepted.
    """
    for option, value in options.items():
        if option not in types:
            none = f"unknown {option!r}; there are no options here, leave it out"
            raise ConfigError(f"{where}: {unknown(option, types) if types else none}")
        try:
            _adapter(types[option]).validate_python(value, strict=True)
        except ValidationError as error:
            accepted = [e["msg"] for e in error.errors() if e["type"] not in _UNSAYABLE]
            said = "; ".join(dict.fromkeys(accepted)).replace("Input should be", "accepted is")
            raise ConfigError(f"{where}.{option}: {value!r} given; {said}; change it") from None


# Members of a union that no recipe can spell: tensors, paths that are already paths.
_UNSAYABLE = ("is_instance_of", "path_type")


def _adapter(accepted: Any) -> TypeAdapter[Any]:
    if isinstance(accepted, type):
        return TypeAdapter(accepted)
    return TypeAdapter(accepted, config=ConfigDict(arbitrary_types_allowed=True))
