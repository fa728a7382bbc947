r"""FT: factors of the teacher's feature, found without labels before training, against the student's.

    L = mean |F_s / |F_s|_2 - F_t / |F_t|_2|,  F_t = paraphraser(f_t), F_s = translator(f_s)

The paraphraser is the encoder of an autoencoder of the teacher's features, with ``share`` times as many
channels. (Kim, Park, Kwak 2018, arXiv 1802.04977, with p = 1.)
Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import ConfigError
from toolchain.distillation.adapters import MapNorm
from toolchain.distillation.losses.arithmetic import full_precision, unit
from toolchain.distillation.losses.entry import distillation_loss
from toolchain.distillation.losses.joining import (
    as_map,
    channels,
    positions,
    require_maps,
    same_resolution,
)
from toolchain.distillation.options import Count, Positive

# 8,192 maps of 16 channels of 32x32 pixels in float32, and as many larger ones as that.
MOST_BYTES = 2**29


@distillation_loss(
    "ft",
    match="own",
    source="Kim, Park, Kwak 2018",
    equation="mean |F_s / |F_s| - F_t / |F_t||, F_t an autoencoder's code of f_t, F_s learned",
    default_strength=200.0,
)
class FactorTransfer(nn.Module):
    """The translator is learned with the student; the paraphraser is fitted by ``prepare`` and then frozen.

    The layers have batch norm; the programs that published comparisons were made with have none in the
    paraphraser. Factors are compared whole, as in the paper. The customary strength comes from comparisons
    that first pooled them over channels, which makes the mean a few times larger. Factors of two resolutions
    are averaged to the smaller one.

    Args:
        student_shape: [B, C, H, W] or tokens [B, N, C] of a square grid.
        teacher_shape: Likewise.
        share: Channels of the factors, of the teacher's; in (0, 1].
        paraphraser_epochs: How often ``prepare`` goes through what it is given.
        paraphraser_lr: Its learning rate.

    Raises:
        ConfigError: Tokens that form no square grid, or a feature of one position.
    """

    prepared: Tensor

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        share: Annotated[float, Field(gt=0, le=1)] = 0.5,
        paraphraser_epochs: Count = 30,
        paraphraser_lr: Positive = 0.01,
    ) -> None:
        super().__init__()
        require_maps("ft", student_shape, teacher_shape)
        if positions(student_shape) < 2:
            raise ConfigError(
                f"distil.losses (ft).spot: features {tuple(student_shape[1:])} of one position given; "
                "accepted are maps and tokens; choose a spot before the pooling"
            )
        s, t = channels(student_shape), channels(teacher_shape)
        factors = max(1, round(share * t))
        self.translator = nn.Sequential(_layer(s, s), _layer(s, factors), _layer(factors, factors))
        self.paraphraser = nn.Sequential(_layer(t, t), _layer(t, factors), _layer(factors, factors))
        self.paraphraser.requires_grad_(False)
        self.register_buffer("prepared", torch.tensor(False))
        self._epochs, self._lr, self._widths = paraphraser_epochs, paraphraser_lr, (factors, t)
        self._ready = False
        self.register_load_state_dict_post_hook(_read_prepared)

    @property
    def ready(self) -> bool:
        """Whether ``prepare`` was called, here or in the run whose state was loaded."""
        return self._ready

    def prepare(self, teacher_features: Iterable[Tensor]) -> None:
        """Fit the paraphraser to these batches of the teacher's features: SGD on mean squared error.

        They are kept until it is done, so no more of them are asked for than fill ``MOST_BYTES``.

        The decoder, which nobody needs afterwards, draws its weights from a generator of its own: the
        result depends on the paraphraser's own weights and on the features, and no random state changes.
        """
        factors, t = self._widths
        kept, size_bytes = list[Tensor](), 0
        for batch in teacher_features:
            kept.append(batch.detach())
            size_bytes += batch.numel() * batch.element_size()
            if size_bytes >= MOST_BYTES:  # e.g. large maps of large images
                break
        weight = next(self.paraphraser.parameters())
        cuda = [torch.cuda.current_device()] if weight.is_cuda else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(0)
            decoder = nn.Sequential(
                _layer(factors, factors, back=True),
                _layer(factors, t, back=True),
                _layer(t, t, back=True),
            ).to(weight)
        autoencoder = nn.Sequential(self.paraphraser, decoder).train().requires_grad_(True)
        optimizer = torch.optim.SGD(
            autoencoder.parameters(), lr=self._lr, momentum=0.9, weight_decay=5e-4
        )
        with torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
            for features in (features for _ in range(self._epochs) for features in kept):
                feature_BCHW = as_map(features).to(weight.dtype)
                optimizer.zero_grad()
                F.mse_loss(autoencoder(feature_BCHW), feature_BCHW).backward()
                optimizer.step()
        self.paraphraser.zero_grad()
        self.paraphraser.requires_grad_(False).eval()
        self.prepared.fill_(True)
        self._ready = True

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a batch.

        Raises:
            RuntimeError: Nobody called ``prepare``, nor loaded a state in which it had been.
        """
        if not self._ready:
            raise RuntimeError("ft: the paraphraser was not prepared")
        self.paraphraser.eval()
        with torch.no_grad():
            factor_t_BCHW = self.paraphraser(as_map(teacher))
        factor_s_BCHW = self.translator(as_map(student))
        factor_s_BCHW, factor_t_BCHW = same_resolution(factor_s_BCHW, factor_t_BCHW)
        return F.l1_loss(unit(factor_s_BCHW.flatten(1)), unit(factor_t_BCHW.flatten(1)))


def _layer(inputs: int, outputs: int, *, back: bool = False) -> nn.Module:
    convolution = nn.ConvTranspose2d if back else nn.Conv2d
    return nn.Sequential(
        convolution(inputs, outputs, 3, padding=1, bias=False),
        MapNorm(outputs),
        nn.LeakyReLU(0.1),
    )


def _read_prepared(module: FactorTransfer, incompatible: object) -> None:
    module._ready = bool(module.prepared)
