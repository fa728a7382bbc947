"""Where a distillation loss attaches: features by module path, and what joins unequal shapes.

A spot is ``logits`` (the network's output), ``penultimate`` (the input of its last linear layer),
or the path of a module (its output). The network itself is not edited. Axes: B batch, C channels,
H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.registry import unknown
from toolchain.training.evaluation import eval_mode

LOGITS, PENULTIMATE = "logits", "penultimate"


@contextmanager
def capture(network: nn.Module, spots: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While open, each forward pass of ``network`` leaves its features at ``spots`` in the dict.

    Raises:
        ConfigError: A spot that the network does not have, or whose output is not one tensor.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for spot in spots:
            if spot == PENULTIMATE:
                handle = _last_linear(network).register_forward_pre_hook(_keep_input(found, spot))
            else:
                module = network if spot == LOGITS else find_module(network, spot)
                handle = module.register_forward_hook(_keep_output(found, spot))
            hooks.callback(handle.remove)
        yield found


def find_module(network: nn.Module, path: str) -> nn.Module:
    """The module at ``path``.

    Raises:
        ConfigError: There is none; names the nearest.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    if path not in modules:
        raise ConfigError(f"distil.spot: {unknown(path, {LOGITS: 0, PENULTIMATE: 0, **modules})}")
    return modules[path]


def shapes(network: nn.Module, spots: Sequence[str], images_BCHW: Tensor) -> dict[str, torch.Size]:
    """Shape of the features at each spot; the network is run in eval mode and left as it was.

    Raises:
        ConfigError: As ``capture``, or a spot that the forward pass does not go through.
    """
    with eval_mode(network), torch.no_grad(), capture(network, spots) as found:
        network(images_BCHW)
    require_reached(found, spots)
    return {spot: found[spot].shape for spot in spots}


def require_reached(found: Mapping[str, Tensor], spots: Sequence[str]) -> None:
    """Refuse spots of which a forward pass left nothing.

    Raises:
        ConfigError: Names the first such spot.
    """
    for spot in spots:
        if spot not in found:
            raise ConfigError(
                f"distil.spot: {spot!r} is not reached by the forward pass; "
                "choose a module that is called"
            )


def adapter(student: torch.Size, teacher: torch.Size, match: str, spot: str) -> nn.Module | None:
    """What brings a student's features to the teacher's shape; None where they fit as they are.

    Adapters are trained with the student and never ship.

    Args:
        student: Shape [B, C, ...] of the student's features.
        teacher: Shape of the teacher's.
        match: ``shape``, or ``positions`` where the number of channels does not matter.
        spot: For the message.

    Raises:
        ConfigError: No adapter joins the two.
    """
    if match == "positions" and len(student) < 3:
        raise ConfigError(
            f"distil.spot: {spot!r} gives {tuple(student[1:])} in the student; this loss compares "
            "positions, which a vector has none of; choose a convolution's output"
        )
    if student[2:] == teacher[2:] and len(student) >= 2:
        if match == "positions" or student[1] == teacher[1]:
            return None
        if spot != LOGITS and len(student) == 4:
            return nn.Conv2d(student[1], teacher[1], 1, bias=False)
        if spot != LOGITS and len(student) == 2:
            return nn.Linear(student[1], teacher[1], bias=False)
    raise ConfigError(
        f"distil.spot: {spot!r} gives {tuple(student[1:])} in the student and "
        f"{tuple(teacher[1:])} in the teacher; at most channels of features may differ; "
        "choose spots of the same resolution"
    )


def _last_linear(network: nn.Module) -> nn.Module:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"distil.spot: {PENULTIMATE!r} needs a linear layer and the network has none; "
            "name a module path"
        )
    return linear[-1]


def _keep_output(found: dict[str, Tensor], spot: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"distil.spot: {spot!r} gives {type(output).__name__}; a single tensor is needed; "
                "choose a module inside it"
            )
        found[spot] = output

    return hook


def _keep_input(found: dict[str, Tensor], spot: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        found[spot] = inputs[0]

    return hook
