"""A module that is not traced, watched at its spots by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from toolchain.distillation.locating import LOGITS, PENULTIMATE, absent, no_linear


@contextmanager
def watching(
    network: nn.Module, spots: Iterable[str], keep: Callable[[str, Any], None]
) -> Iterator[None]:
    """While open, each forward pass calls ``keep(spot, value)`` at each spot.

    Raises:
        ConfigError: A spot that the network does not have.
    """

    def hook(spot: str) -> Callable[[nn.Module, Any, Any], None]:
        def forward_hook(module: nn.Module, inputs: Any, output: Any) -> None:
            keep(spot, inputs[0] if spot == PENULTIMATE else output)

        return forward_hook

    with ExitStack() as hooks:
        for spot in spots:
            hooks.callback(_module_at(network, spot).register_forward_hook(hook(spot)).remove)
        yield


def _module_at(network: nn.Module, spot: str) -> nn.Module:
    """The module that is watched for ``spot``."""
    if spot == LOGITS:
        return network
    if spot == PENULTIMATE:
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise no_linear()
        return linear[-1]
    modules = {path: module for path, module in network.named_modules() if path}
    if spot not in modules:
        raise absent(network, spot, modules)
    return modules[spot]
