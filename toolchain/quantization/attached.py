"""What is attached to a network so that one set of tensors holds student and teacher; and how it comes off.

A weight gets a `WeightView`, a bias or a batch norm's factor and shift a `VectorView`; a batch norm can have
a second set of everything for the teacher; a slice-and-pad shortcut learns which channels are masked.
Suffixes: O output channels, I input channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from deploy.errors import StructureError
from toolchain.models.shortcut import PadShortcut
from toolchain.quantization.views import View, Viewed, use_view
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
            return self.teacher(x)
        return super().forward(x)


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

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def seen(self) -> Tensor:
        """Output channels [O] that masks on neither side hide; zeros by construction count as seen."""
        return self.keep_O & (self.keep_I[self.source_O.clamp_min(0)] | (self.source_O < 0))

    def forward(self, x: Tensor) -> Tensor:
        y = PadShortcut.forward(self, x)
        if self.view is not View.STUDENT or not self.masked:
            return y
        return y * self.seen().view(1, -1, 1, 1).to(y.dtype)


VIEWED: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm1d: ViewedBatchNorm1d,
    nn.BatchNorm2d: ViewedBatchNorm2d,
}


def weighted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every convolution and linear layer with its path, in definition order."""
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            yield name, module


def _attachment(module: nn.Module, name: str) -> parametrize.ParametrizationList | None:
    """What stands between ``module.<name>`` and its latent tensor, or None."""
    if not parametrize.is_parametrized(module, name):
        return None
    attachments = module.parametrizations
    assert isinstance(attachments, nn.ModuleDict)
    attachment = attachments[name]
    assert isinstance(attachment, parametrize.ParametrizationList)
    return attachment


def weight_view(module: nn.Module) -> WeightView | None:
    """The view attached to a module's weight, or None."""
    attachment = _attachment(module, "weight")
    view = None if attachment is None else attachment[0]
    return view if isinstance(view, WeightView) else None


def attach_views(network: nn.Module, elements: bool = False) -> nn.Module:
    """Give every weight, bias and batch norm its view, in place; the student's output is unchanged.

    ``elements`` adds masks of single weights.

    Raises:
        StructureError: A weight is computed by something else, such as a weight norm.
    """
    modules = dict(network.named_modules())
    teachers = {
        id(module.teacher) for module in modules.values() if isinstance(module, _ViewedBatchNorm)
    }
    for path, module in modules.items():
        if isinstance(module, _ViewedBatchNorm | ViewedPadShortcut) or id(module) in teachers:
            continue
        for plain, viewed in VIEWED.items():
            if type(module) is plain:
                module.__class__ = viewed  # same layout; only forward learns about views
                vars(module)["teacher"] = None
        if type(module) is PadShortcut:
            device = module.source_O.device
            module.__class__ = ViewedPadShortcut
            for name, size in (("keep_O", module.out_channels), ("keep_I", module.in_channels)):
                module.register_buffer(name, torch.ones(size, dtype=torch.bool, device=device))
            vars(module)["masked"] = False
        if isinstance(module, _ConvNd | nn.Linear) and weight_view(module) is None:
            if "weight" not in dict(module.named_parameters(recurse=False)):
                raise StructureError(
                    f"model: the weight of {path!r} is computed from other tensors; accepted is a "
                    "plain parameter; remove the weight norm or parametrization from the model first"
                )
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
                momentum=module.momentum,
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
            known = {name: tensor for name, tensor in latent.items() if tensor is not None}
            for name in ("running_var", "weight"):
                if name in known:  # a norm without statistics and affine has no tensor to place
                    teacher.to(known[name].device, known[name].dtype)
            teacher.load_state_dict(known)
            module.teacher = teacher.train(module.training)


def teacher_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """The batch norms that the teacher's view has of its own."""
    for module in network.modules():
        if isinstance(module, _ViewedBatchNorm) and module.teacher is not None:
            yield module.teacher


def latent_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter behind ``module.<name>``, whether a view is attached or not."""
    attachment = _attachment(module, name)
    latent = getattr(module, name) if attachment is None else attachment.original
    assert isinstance(latent, nn.Parameter)
    return latent


def strip_views(network: nn.Module) -> nn.Module:
    """Bake the student's view into plain tensors and take everything attached off, in place.

    Activation quantizers are modules of the network, not attachments: they stay.
    """
    with use_view(network, View.STUDENT):
        for module in list(network.modules()):
            _bake(module)
    for module in list(network.modules()):
        for plain, viewed in VIEWED.items():
            if type(module) is viewed:
                del module.teacher
                _become(module, plain)
        if isinstance(module, ViewedPadShortcut):
            seen_O = module.seen()
            del module.keep_O, module.keep_I, module.masked
            module.source_O = torch.where(seen_O, module.source_O, -1)
            _become(module, PadShortcut)
    return network


def _bake(module: nn.Module) -> None:
    """Put the values that are seen into the latent tensors and make these the module's own.

    `torch.nn.utils.parametrize.remove_parametrizations` would break every deep copy of the module: it
    takes the properties off a class that copies share.
    """
    seen: dict[str, tuple[nn.Parameter, Tensor]] = {}
    for name in ("weight", "bias"):
        if _attachment(module, name) is not None:
            value = getattr(module, name).detach().clone(memory_format=torch.preserve_format)
            seen[name] = latent_parameter(module, name), value
    if seen:
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, (latent, value) in seen.items():
            latent.data = value
            module.register_parameter(name, latent)


def _become(module: nn.Module, plain: type[nn.Module]) -> None:
    """Take the class back that `attach_views` changed, and what only the viewed class knows."""
    vars(module).pop("view", None)
    module.__class__ = plain


def bare_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary with the names that its tensors have where nothing is attached.

    Tensors that exist only because something is attached keep their names.
    """
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): tensor
        for name, tensor in state.items()
    }
