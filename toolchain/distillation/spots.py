"""Where a distillation loss attaches: features by module path or pattern.

A spot is ``logits`` (the network's output), ``penultimate`` (the input of its last linear layer), or the
path of a module or of a container of modules (its output). A pattern such as ``layer*`` or ``layer?.0``
stands for every module that it matches; a ``*`` does not go across a dot. The network is not edited.
Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from deploy.errors import ConfigError
from toolchain.distillation.locating import (
    LOGITS,
    PENULTIMATE,
    absent,
    is_pattern,
    locate,
    no_linear,
    places,
)
from toolchain.distillation.tapping import copied, require_tensor, tapped, tapped_forward
from toolchain.quantization.residual_kernels import whole
from toolchain.training.evaluation import eval_mode

__all__ = [
    "LOGITS",
    "PENULTIMATE",
    "capture",
    "match_spots",
    "require_reached",
    "shapes",
    "spots_of",
]


def capture(network: nn.Module, spots: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
    """While open, each forward pass of ``network`` leaves its features at ``spots`` in the dict.

    A traced network is watched without a hook and gives containers too; of what is not overwritten later
    nothing is copied. Any other module is watched with hooks, and its features are copies.

    Raises:
        ConfigError: A spot that the network does not have, or whose output is not one tensor.
    """
    return (
        tapped(network, spots) if isinstance(network, fx.GraphModule) else _hooked(network, spots)
    )


def match_spots(network: nn.Module, pattern: str) -> tuple[str, ...]:
    """The spots that ``pattern`` names: itself, or every path that it matches.

    Paths are in the order of execution for a traced network, and of definition for any other. Each part
    of a pattern between dots is matched by itself: ``layer*`` is layer1 and layer2 but not layer1.0.

    Raises:
        ConfigError: It matches nothing; names the nearest.
    """
    known = [path for path in _paths(network) if path not in (LOGITS, PENULTIMATE)]
    if not is_pattern(pattern):
        if isinstance(network, fx.GraphModule):
            locate(network, whole(network), pattern)
        elif pattern not in (*known, LOGITS, PENULTIMATE):
            raise absent(network, pattern, known)
        return (pattern,)
    found = tuple(path for path in known if _matches(path, pattern))
    if not found:
        raise absent(network, pattern, known)
    return found


def spots_of(network: nn.Module, images_BCHW: Tensor) -> dict[str, torch.Size]:
    """Every spot that gives one tensor, in the order of execution, with its shape for these images.

    The network is run once, in eval mode, and left as it was.
    """
    with eval_mode(network), torch.no_grad():
        if isinstance(network, fx.GraphModule):
            linear = any(isinstance(module, nn.Linear) for module in network.modules())
            paths = (*_paths(network), *([PENULTIMATE] if linear else []))
            output, *values = tapped_forward(network, paths)(network, images_BCHW)
            seen = [*zip(paths, values, strict=True), (LOGITS, output)]
        else:
            seen = []
            with ExitStack() as hooks:
                for path in _paths(network):
                    hook = _keep(lambda value, path=path: seen.append((path, value)))
                    hooks.callback(_module_at(network, path).register_forward_hook(hook).remove)
                seen.append((LOGITS, network(images_BCHW)))
    return {path: value.shape for path, value in seen if isinstance(value, Tensor)}


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


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _paths(network: nn.Module) -> list[str]:
    if isinstance(network, fx.GraphModule):
        return list(places(network, whole(network)))
    return [path for path, _ in network.named_modules() if path]


@contextmanager
def _hooked(network: nn.Module, spots: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def keep(spot: str, value: object) -> None:
        # Nobody knows here whether the next module works in place.
        found[spot] = require_tensor(spot, value if spot == LOGITS else copied(value))

    with ExitStack() as hooks:
        for spot in spots:
            module = _module_at(network, spot)
            if spot == PENULTIMATE:
                handle = module.register_forward_pre_hook(
                    lambda module, inputs, spot=spot: keep(spot, inputs[0])
                )
            else:
                handle = module.register_forward_hook(_keep(lambda y, spot=spot: keep(spot, y)))
            hooks.callback(handle.remove)
        yield found


def _keep(keep: Callable[[Any], None]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        keep(output)

    return hook


def _module_at(network: nn.Module, spot: str) -> nn.Module:
    """The module that is watched for ``spot``."""
    if spot == LOGITS:
        return network
    if spot == PENULTIMATE:
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise no_linear()
        return linear[-1]
    modules = dict(network.named_modules())
    if not spot or spot not in modules:
        raise absent(network, spot, [path for path in modules if path])
    return modules[spot]
