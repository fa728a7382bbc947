"""What is attached to a network so that one set of tensors holds student and teacher; and how it comes off.

A weight gets a `WeightView`, a bias or a batch norm's factor and shift a `VectorView`; a batch norm can have
a second set of everything for the teacher; a slice-and-pad shortcut learns which channels are masked.
Suffixes: O output channels, I input channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.views import View, Viewed
from toolchain.quantization.weights import WeightView


class VectorView(Viewed):
    """Masks a per-channel vector (bias, batch-norm factor and shift) in the student's view."""

    keep_O: Tensor

    def __init__(self, vector_O: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep_O", torch.ones(len(vector_O), dtype=torch.bool))

    def mask(self) -> Tensor:
        return self.keep_O

    def forward(self, vector_O: Tensor) -> Tensor:
        return vector_O * self.keep_O if self.view is View.STUDENT else vector_O

    def right_inverse(self, vector_O: Tensor) -> Tensor:
        return vector_O


class _ViewedBatchNorm(Viewed):
    """Mixed into a batch norm: the teacher's view may have statistics and affine of its own."""

    teacher: _BatchNorm | None

    def forward(self, x: Tensor) -> Tensor:
        if self.view is View.TEACHER and self.teacher is not None:
            return self.teacher(x)  # type: ignore[no-any-return]
        return super().forward(x)  # type: ignore[no-any-return]


class ViewedBatchNorm1d(_ViewedBatchNorm, nn.BatchNorm1d):
    """A 1-D batch norm with a teacher's side."""


class ViewedBatchNorm2d(_ViewedBatchNorm, nn.BatchNorm2d):
    """A 2-D batch norm with a teacher's side."""


class ViewedPadShortcut(Viewed, PadShortcut):
    """A slice-and-pad shortcut whose masked channels are zeros in the student's view."""

    keep_O: Tensor
    keep_I: Tensor
    masked: bool

    def refresh(self) -> None:
        """Take note of changed masks, so that a forward pass never reads them from a device."""
        self.masked = not bool(self.keep_O.all() and self.keep_I.all())

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        y = PadShortcut.forward(self, x)
        if self.view is not View.STUDENT or not self.masked:
            return y
        seen_O = self.keep_O & (self.keep_I[self.source_O.clamp_min(0)] | (self.source_O < 0))
        return y * seen_O.view(1, -1, 1, 1).to(y.dtype)


VIEWED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ViewedBatchNorm1d,
    nn.BatchNorm2d: ViewedBatchNorm2d,
}


def weighted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every convolution and linear layer with its path, in definition order."""
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            yield name, module


def weight_view(module: nn.Module) -> WeightView | None:
    """The view attached to a module's weight, or None."""
    if parametrize.is_parametrized(module, "weight"):
        view = module.parametrizations["weight"][0]  # type: ignore[index]
        return view if isinstance(view, WeightView) else None
    return None


def attach_views(network: nn.Module, elements: bool = False) -> nn.Module:
    """Give every weight, bias and batch norm its view, in place; the student's output is unchanged.

    ``elements`` adds masks of single weights.
    """
    for module in list(network.modules()):
        if isinstance(module, _ViewedBatchNorm | ViewedPadShortcut):
            continue
        if type(module) in VIEWED:
            module.__class__ = VIEWED[type(module)]  # same layout; only forward learns about views
            module.teacher = None
        if type(module) is PadShortcut:
            module.__class__ = ViewedPadShortcut
            for name, size in (("keep_O", module.out_channels), ("keep_I", module.in_channels)):
                module.register_buffer(name, torch.ones(size, dtype=torch.bool))
            module.masked = False  # type: ignore[assignment]
        if isinstance(module, _ConvNd | nn.Linear) and weight_view(module) is None:
            transposed = isinstance(module, _ConvTransposeNd)
            per_input = not (isinstance(module, _ConvNd) and module.groups > 1)
            view = WeightView(module.weight, int(transposed), per_input, elements)
            parametrize.register_parametrization(module, "weight", view, unsafe=True)
        if isinstance(module, _ConvNd | nn.Linear | _BatchNorm):
            for name in ("weight", "bias") if isinstance(module, _BatchNorm) else ("bias",):
                vector = getattr(module, name, None)
                if vector is not None and not parametrize.is_parametrized(module, name):
                    parametrize.register_parametrization(
                        module, name, VectorView(vector), unsafe=True
                    )
    return network


def attach_teacher_norms(network: nn.Module) -> None:
    """Give the teacher's view its own batch norms, starting as copies of the latent ones."""
    for module in list(network.modules()):
        if isinstance(module, _ViewedBatchNorm) and module.teacher is None:
            assert isinstance(module, _BatchNorm)
            plain = next(base for base, viewed in VIEWED.items() if isinstance(module, viewed))
            teacher = plain(
                module.num_features,
                eps=module.eps,
                momentum=module.momentum,  # type: ignore[call-arg]
                affine=module.affine,
                track_running_stats=module.track_running_stats,
            )
            latent = {
                "running_mean": module.running_mean,
                "running_var": module.running_var,
                "num_batches_tracked": module.num_batches_tracked,
            }
            if module.affine:
                for name in ("weight", "bias"):
                    latent[name] = latent_parameter(module, name)
            teacher.load_state_dict(
                {key: value for key, value in latent.items() if value is not None}
            )
            teacher.train(module.training)
            module.teacher = teacher  # type: ignore[assignment]


def latent_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter behind ``module.<name>``, whether a view is attached or not."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name].original  # type: ignore[index, return-value, union-attr]
    return module.get_parameter(name)


def strip_views(network: nn.Module) -> nn.Module:
    """Bake the student's view into plain tensors and take everything attached off, in place."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type, union-attr]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for module in network.modules():
        for plain, viewed in VIEWED.items():
            if type(module) is viewed:
                del module.teacher
                module.__class__ = plain
        if type(module) is ViewedPadShortcut:
            keep_I, source_O = module.keep_I, module.source_O
            seen_O = module.keep_O & (keep_I[source_O.clamp_min(0)] | (source_O < 0))
            del module.keep_O, module.keep_I, module.masked
            module.__class__ = PadShortcut
            module.source_O = torch.where(seen_O, source_O, -1)
    return network


def bare_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary with the names that its tensors have where nothing is attached.

    Tensors that exist only because something is attached keep their names.
    """
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): tensor
        for name, tensor in state.items()
    }
