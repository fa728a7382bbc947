"""How much each channel of a group matters, from weights or from gradients.

For the rows w_c that make channel c in a layer (and the gradient g_c of the loss on them):

    l1        sum |w_c|              Li et al. 2017, "Pruning Filters for Efficient ConvNets",
                                     https://arxiv.org/abs/1608.08710, section 3.1
    l2        sqrt(sum w_c^2)        He et al. 2018, "Soft Filter Pruning", https://arxiv.org/abs/1808.06866
    taylor    |sum w_c g_c|          Molchanov et al. 2019, "Importance Estimation for Neural Network
                                     Pruning", https://arxiv.org/abs/1906.10771, equation 8 without the square
    bn_scale  |gamma_c|              Liu et al. 2017, "Learning Efficient Convolutional Networks through
                                     Network Slimming", https://arxiv.org/abs/1708.06519, section 3

A channel that several layers make (a residual stream) gets the mean over them. To compare channels of
different groups, ``normalized`` divides by the group's mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deploy.errors import ConfigError, StructureError
from toolchain.structure.cost import evaluating
from toolchain.structure.plan import Group, Slice

Gradients = Mapping[str, Tensor]
Score = Callable[[Group, nn.Module, Gradients | None], Tensor]

_SCORES: dict[str, Score] = {}


def register(name: str) -> Callable[[Score], Score]:
    """Make a score available under this name; a second owner of a name is refused."""

    def add(score: Score) -> Score:
        if name in _SCORES:
            raise ValueError(f"importance {name!r} is registered twice")
        _SCORES[name] = score
        return score

    return add


def names() -> tuple[str, ...]:
    """The names that ``importance`` accepts."""
    return tuple(sorted(_SCORES))


def importance(
    group: Group, network: nn.Module, kind: str, gradients: Gradients | None = None
) -> Tensor:
    """A score >= 0 for each channel of ``group``, [channels], float64; larger matters more.

    Args:
        gradients: By parameter name, for ``taylor`` (see ``taylor_gradients``).

    Raises:
        ConfigError: ``kind`` is not known.
        StructureError: The group has no layer that the score could be read from.
    """
    if kind not in _SCORES:
        near = difflib.get_close_matches(kind, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "take one of these"
        raise ConfigError(
            f"structure.importance: {kind!r} given; accepted are {list(names())}; {hint}"
        )
    return _SCORES[kind](group, network, gradients)


def normalized(scores_C: Tensor) -> Tensor:
    """Scores divided by their mean, so that an average channel of any group has 1."""
    mean = scores_C.mean()
    return scores_C / mean if mean > 0 else torch.ones_like(scores_C)


def taylor_gradients(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The gradient of the mean cross entropy over these batches, by parameter name.

    In evaluation mode: with batch statistics a layer before a BatchNorm is invariant to the scale of
    its rows, and sum w g would be zero for all of them. The network's own gradients are left alone.
    """
    parameters = {
        name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad
    }
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    samples = 0
    with evaluating(network), torch.enable_grad():
        for images, labels in batches:
            loss = F.cross_entropy(network(images), labels, reduction="sum")
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient
            samples += len(labels)
    if not samples:
        raise StructureError(
            "structure.importance: taylor was given no sample; accepted is at least one batch; "
            "choose another importance or give more data"
        )
    return {name: total / samples for name, total in sums.items()}


@register("l1")
def _l1(group: Group, network: nn.Module, gradients: Gradients | None) -> Tensor:
    return _mean_over_layers(group, network, lambda w_OX, _: w_OX.abs().sum(1))


@register("l2")
def _l2(group: Group, network: nn.Module, gradients: Gradients | None) -> Tensor:
    return _mean_over_layers(group, network, lambda w_OX, _: w_OX.square().sum(1), torch.sqrt)


@register("taylor")
def _taylor(group: Group, network: nn.Module, gradients: Gradients | None) -> Tensor:
    if gradients is None:
        raise StructureError(
            "structure.importance: taylor needs gradients and none were given; accepted are those "
            "of taylor_gradients; choose another importance where there is no data"
        )
    known = gradients

    def product(w_OX: Tensor, name: str) -> Tensor:
        module = network.get_submodule(name)
        return (w_OX * _rows(module, known[f"{name}.weight"])).sum(1)

    return _mean_over_layers(group, network, product, torch.abs)


@register("bn_scale")
def _bn_scale(group: Group, network: nn.Module, gradients: Gradients | None) -> Tensor:
    scores = []
    for part in group.slices:
        module = network.get_submodule(part.module)
        if part.axis == "out" and isinstance(module, _BatchNorm) and module.affine:
            scores.append(_per_channel(part, module.weight.detach().double().abs()))
    if not scores:
        raise StructureError(
            f"structure.importance: bn_scale given, and group {group.name!r} has no BatchNorm; "
            f"accepted are {[name for name in names() if name != 'bn_scale']}; choose one of them"
        )
    return torch.stack(scores).mean(0)


def producers(group: Group, network: nn.Module) -> list[Slice]:
    """The slices of ``group`` whose layers make its channels with weights."""
    return [
        part
        for part in group.slices
        if part.axis == "out"
        and isinstance(network.get_submodule(part.module), _ConvNd | nn.Linear)
    ]


def _mean_over_layers(
    group: Group,
    network: nn.Module,
    score: Callable[[Tensor, str], Tensor],
    finish: Callable[[Tensor], Tensor] = torch.abs,
) -> Tensor:
    """``score`` of each row, summed over the rows of a channel, ``finish``ed, averaged over layers."""
    scores = []
    for part in producers(group, network):
        module = network.get_submodule(part.module)
        weight = module.weight
        assert isinstance(weight, Tensor)
        score_O = score(_rows(module, weight.detach()), part.module)
        scores.append(finish(_per_channel(part, score_O)))
    if not scores:
        raise StructureError(
            f"structure.importance: no layer of group {group.name!r} has weights; accepted are groups "
            "with a convolution or linear layer; name it under structure.ignore"
        )
    return torch.stack(scores).mean(0)


def _rows(module: nn.Module, tensor: Tensor) -> Tensor:
    """A weight-shaped tensor as [O, X], float64."""
    if isinstance(module, _ConvTransposeNd) and module.groups == 1:
        tensor = tensor.transpose(0, 1)
    return tensor.double().flatten(1)


def _per_channel(part: Slice, values_O: Tensor) -> Tensor:
    """The sum over the positions of each channel."""
    return torch.stack([values_O[list(positions)].sum() for positions in part.index])
