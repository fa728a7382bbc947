"""Small networks with nothing trivial in them: random batch norms, some factors negative, one zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate

BUILTINS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "resnet-pad": ("cifar_resnet", {"depth": 8, "width": 4}, (3, 8, 8)),
    "resnet-conv": ("cifar_resnet", {"depth": 8, "width": 4, "shortcut": "conv"}, (3, 8, 8)),
    "vgg": ("vgg", {"widths": [4, "M", 8]}, (3, 8, 8)),
    "mobilenet": (
        "mobilenet_v2",
        {"multiplier": 0.25, "stages": [[1, 8, 1, 1], [2, 8, 2, 2]]},
        (3, 8, 8),
    ),
    "ds-cnn": ("ds_cnn", {"channels": 8, "blocks": 2}, (1, 16, 8)),
    "mlp": ("mlp", {"input_shape": [1, 8, 8], "hidden": [16, 8]}, (1, 8, 8)),
}


@dataclass(frozen=True)
class Case:
    """A network in eval mode and inputs [B, C, H, W] for it."""

    name: str
    network: fx.GraphModule
    images: Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomize(network: nn.Module, seed: int = 0) -> None:
    """Give every batch norm statistics, factors of both signs and a factor of zero."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            with torch.no_grad():
                module.weight[1::3] *= -1
                module.weight[0] = 0


@pytest.fixture(name="randomize")
def _randomize() -> Callable[..., None]:
    return randomize


@pytest.fixture(params=sorted(BUILTINS))
def builtin(request: pytest.FixtureRequest) -> Case:
    """Every built-in network, small."""
    name, args, shape = BUILTINS[request.param]
    torch.manual_seed(0)
    network = trace(build(name, **args)).eval()
    randomize(network)
    return Case(request.param, network, torch.randn(8, *shape))


@pytest.fixture
def resnet() -> Case:
    """Slice-and-pad shortcuts, residual adds, pooling and a linear head."""
    name, args, shape = BUILTINS["resnet-pad"]
    torch.manual_seed(0)
    network = trace(build(name, **args)).eval()
    randomize(network)
    return Case("resnet-pad", network, torch.randn(8, *shape))


@pytest.fixture
def quantize() -> Callable[..., fx.GraphModule]:
    """Attach calibrated quantizers in place."""

    def quantize(network: fx.GraphModule, images: Tensor, **settings: Any) -> fx.GraphModule:
        attach_quantizers(network, Quantization(**settings))
        calibrate(network, [images])
        return network

    return quantize
