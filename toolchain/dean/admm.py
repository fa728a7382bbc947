"""Structured sparsity by ADMM: the weights W follow a copy Z in which whole channels are zero.

    min_W L(W) + sum_l beta_l sum_g sqrt|g| |W_g|_2,   split as W = Z with the scaled dual U

    W-step   some steps on  L(W) + rho / 2 |W - Z + U|^2:  the optimizer's on L, each followed by the
             second part's proximal step  W <- W - eta rho / (1 + eta rho) (W - Z + U)
    Z-step   with V = W + U, per channel group:
             soft        Z_g = max(0, 1 - (beta_l sqrt|g| / rho) / |V_g|) V_g        (a group lasso's prox)
             projection  Z_g = V_g for the channels that a budget keeps, 0 for the others
    dual     U <- U + tau (W - Z),   tau in (0, 1]

Liu et al. 2022 (IEEE TPAMI 45(3), doc. 9804342) train the student by "ADMM-based knowledge distillation
with pruning"; Boyd et al. 2011, "Distributed Optimization and Statistical Learning via ADMM", sections 3.1.1
and 6.4.2, has the algorithm; Yuan, Lin 2006 the group lasso. **Reconstruction**: the split, what a group is,
and that the weight of the penalty is a price p shared by all layers (in place of 1 / rho) times beta_l.

A group here is a channel that can be cut (`toolchain.structure.plan.Group`) with every number on the side
that makes it: its filters in all layers that are tied together, biases, and the factor and shift of its
batch norms. They share one norm. So no two groups overlap, and a channel whose Z_g is zero computes zero.
The columns that read the channel belong to the groups of their own outputs.
Axes: P all numbers of the tensors of groups, C channels of a group, O positions of a tensor's output axis,
K positions of one channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from toolchain.quantization.attached import latent_parameter
from toolchain.structure.plan import Group, Slice

Values = Mapping[nn.Parameter, Tensor]


class _Part(NamedTuple):
    """One latent tensor of a group: its output axis, and each channel's positions along it."""

    parameter: nn.Parameter
    axis: int
    index_CK: Tensor


class ChannelGroup:
    """The latent numbers that make the channels of one structural group.

    Attributes:
        name: Of the structural group.
        channels: How many there are.
        size: |g|, how many numbers make one channel.
    """

    def __init__(self, group: Group, network: nn.Module) -> None:
        self.name, self.channels = group.name, group.channels
        self._parts = [
            part for one in group.slices if one.axis == "out" for part in _parts(one, network)
        ]
        numbers = sum(
            part.parameter.numel() // part.parameter.shape[part.axis] * part.index_CK.shape[1]
            for part in self._parts
        )
        self.size = numbers

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The latent tensors that the group has a share of."""
        return tuple(part.parameter for part in self._parts)

    def dots(self, left: Values, right: Values) -> Tensor:
        """<left_g, right_g> of each channel, [C], float64."""
        sums = []
        for part in self._parts:
            both = (left[part.parameter] * right[part.parameter]).double()
            sums_O = both.transpose(0, part.axis).reshape(both.shape[part.axis], -1).sum(1)
            sums.append(sums_O[part.index_CK.to(sums_O.device)].sum(1))
        return torch.stack(sums).sum(0)

    def norms(self, values: Values) -> Tensor:
        """|V_g| of each channel, [C], float64."""
        return self.dots(values, values).sqrt()

    @torch.no_grad()
    def scale(self, values: Values, factor_C: Tensor) -> None:
        """Multiply each channel's numbers by its factor, in place."""
        for part in self._parts:
            tensor = values[part.parameter]
            positions = part.index_CK.to(tensor.device)
            factor_O = torch.ones(tensor.shape[part.axis], device=tensor.device, dtype=tensor.dtype)
            factor_O[positions] = factor_C.to(factor_O)[:, None].expand_as(positions)
            shape = [1] * tensor.dim()
            shape[part.axis] = -1
            tensor.mul_(factor_O.view(shape))

    @torch.no_grad()
    def cover(self, masks: Values) -> None:
        """Mark the positions that belong to the group."""
        for part in self._parts:
            mask = masks[part.parameter].transpose(0, part.axis)
            mask[part.index_CK.flatten().to(mask.device)] = True


def soft_threshold(norms_C: Tensor, threshold: float | Tensor) -> Tensor:
    """The factor of each channel, max(0, 1 - t / |V_g|), in [0, 1]; 0 for a channel of zeros.

    >>> soft_threshold(torch.tensor([4.0, 1.0, 0.0]), 2.0)
    tensor([0.5000, 0.0000, 0.0000])
    """
    return (1 - threshold / norms_C.clamp_min(1e-30)).clamp(0, 1) * (norms_C > 0)


class Admm:
    """The copies of the weights that ADMM keeps, and its steps.

    Args:
        groups: Disjoint; what lies in none of them is not drawn anywhere.
        rho: Weight of the penalty that draws W to Z - U.
        dual_step: tau. After too few W-steps W is still far from Z, and with tau = 1 the V of what was just
            cut is twice its W: it comes back, and the choice swings to and fro.
    """

    def __init__(
        self, groups: Sequence[ChannelGroup], rho: float, *, dual_step: float = 1.0
    ) -> None:
        self.groups, self.rho, self._dual_step = tuple(groups), rho, dual_step
        self._parameters = list(
            {id(p): p for group in self.groups for p in group.parameters}.values()
        )
        self._z = {p: p.detach().clone() for p in self._parameters}
        self._u = {p: torch.zeros_like(p.detach()) for p in self._parameters}
        self._in_group = {
            p: torch.zeros_like(p.detach(), dtype=torch.bool) for p in self._parameters
        }
        for group in self.groups:
            group.cover(self._in_group)
        # Z - U and what lies in a group, as two vectors: a penalty in every step has to be cheap.
        self._anchor: tuple[Tensor, Tensor] | None = None

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The latent tensors W that have a Z and a U."""
        return tuple(self._parameters)

    def penalty(self) -> Tensor:
        """rho / 2 |W - Z + U|^2 over all groups, with its graph."""
        if not self._parameters:
            return torch.zeros(())
        if self._anchor is None:
            to_P = torch.cat([(self._z[p] - self._u[p]).flatten() for p in self._parameters])
            inside_P = torch.cat([self._in_group[p].flatten() for p in self._parameters])
            self._anchor = to_P, inside_P
        to_P, inside_P = self._anchor
        w_P = torch.cat([p.flatten() for p in self._parameters])
        return 0.5 * self.rho * ((w_P - to_P) * inside_P).square().sum()

    @torch.no_grad()
    def approach(self, step_size: float) -> None:
        """The penalty's proximal step of size eta, on W.

        It is taken beside the optimizer's step and not through the loss, where clipping would let a
        steep distillation loss push it aside, or be pushed aside by it.
        """
        share = step_size * self.rho / (1 + step_size * self.rho)
        for parameter in self._parameters:
            parameter.sub_(share * self._away(parameter))

    @torch.no_grad()
    def penalty_gradients(self) -> dict[nn.Parameter, Tensor]:
        """rho (W - Z + U)."""
        return {p: self.rho * self._away(p) for p in self._parameters}

    @torch.no_grad()
    def v(self) -> dict[nn.Parameter, Tensor]:
        """V = W + U, as fresh tensors."""
        return {p: p.detach() + self._u[p] for p in self._parameters}

    @torch.no_grad()
    def thresholded(self, factors: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        """What a Z-step with these factors [C] by group would give; W where there is no group."""
        z = self.v()
        for group in self.groups:
            group.scale(z, factors[group.name])
        return {p: torch.where(self._in_group[p], z[p], p.detach()) for p in self._parameters}

    @torch.no_grad()
    def step(self, factors: Mapping[str, Tensor]) -> None:
        """The Z-step with these factors by group, then the dual update."""
        for parameter, z in self.thresholded(factors).items():
            self._z[parameter].copy_(z)
            self._u[parameter].add_(parameter.detach() - z, alpha=self._dual_step)
        self._anchor = None

    @torch.no_grad()
    def residual(self) -> float:
        """|W - Z| / |W|: how far the weights are from being sparse."""
        apart = sum((p - self._z[p]).double().square().sum() for p in self._parameters)
        whole = sum(p.double().square().sum() for p in self._parameters)
        return float((apart / whole) ** 0.5) if self._parameters and float(whole) > 0 else 0.0

    def to_device(self) -> None:
        """Put Z and U where the weights are now."""
        for kept in (self._z, self._u, self._in_group):
            for parameter, tensor in kept.items():
                kept[parameter] = tensor.to(parameter.device)
        self._anchor = None

    def state_dict(self) -> dict[str, Any]:
        """Z and U, in the order of the groups' tensors."""
        return {"z": list(self._z.values()), "u": list(self._u.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name, kept in (("z", self._z), ("u", self._u)):
            for parameter, tensor in zip(self._parameters, state[name], strict=True):
                kept[parameter].copy_(tensor)
        self._anchor = None

    def _away(self, parameter: nn.Parameter) -> Tensor:
        away = parameter - self._z[parameter] + self._u[parameter]
        return away * self._in_group[parameter]


def _parts(part: Slice, network: nn.Module) -> list[_Part]:
    """The tensors of a module that have the slice's axis, as the module itself sees it."""
    module = network.get_submodule(part.module)
    index_CK = torch.tensor(part.index, dtype=torch.long).view(len(part.index), -1)
    if not isinstance(module, _ConvNd | nn.Linear | _BatchNorm):
        return []  # a slice-and-pad shortcut makes its channels of others and has no numbers
    transposed = isinstance(module, _ConvTransposeNd) and module.groups == 1
    parts = []
    for name, axis in (("weight", int(transposed)), ("bias", 0)):
        if getattr(module, name, None) is not None:
            parts.append(_Part(latent_parameter(module, name), axis, index_CK))
    return parts
