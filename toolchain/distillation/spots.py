"""Where a distillation loss attaches: features by module path or pattern.

A spot is ``logits`` (the network's output), ``penultimate`` (the input of its last linear layer), or the
path of a module or of a container of modules (its output). A pattern such as ``layer*`` or ``layer?.0``
stands for every module that it matches; a ``*`` does not go across a dot. The network is not edited.
Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from deploy.errors import ConfigError
from toolchain.distillation.hooking import watching
from toolchain.distillation.locating import (
    LOGITS,
    PENULTIMATE,
    absent,
    is_pattern,
    locate,
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
    "matches",
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
    found = tuple(path for path in known if matches(path, pattern))
    if not found:
        raise absent(network, pattern, known)
    return found


def spots_of(network: nn.Module, images_BCHW: Tensor) -> dict[str, torch.Size]:
    """Every spot that gives one tensor, in the order of execution, with its shape for these images.

    The network is run once, in eval mode, and left as it was.
    """
    paths = _paths(network)
    linear = [path for path in paths if isinstance(network.get_submodule(path), nn.Linear)]
    if linear:
        paths.insert(paths.index(linear[-1]), PENULTIMATE)
    spots = (*paths, LOGITS)
    seen: list[tuple[str, Any]] = []
    with eval_mode(network), torch.no_grad():
        if isinstance(network, fx.GraphModule):
            _, *values = tapped_forward(network, spots)(network, images_BCHW)
            seen += zip(spots, values, strict=True)
        else:
            with watching(network, spots, lambda spot, value: seen.append((spot, value))):
                network(images_BCHW)
    return {spot: value.shape for spot, value in seen if isinstance(value, Tensor)}


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


def matches(path: str, pattern: str) -> bool:
    """Whether the pattern stands for the path; each part between dots is matched by itself."""
    parts, patterns = path.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _paths(network: nn.Module) -> list[str]:
    if isinstance(network, fx.GraphModule):
        return list(places(network, whole(network)))
    return [path for path, _ in network.named_modules() if path]


@contextmanager
def _hooked(network: nn.Module, spots: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def keep(spot: str, value: Any) -> None:
        # Nobody knows here whether the next module works in place.
        found[spot] = require_tensor(spot, value if spot == LOGITS else copied(value))

    with watching(network, spots, keep):
        yield found
