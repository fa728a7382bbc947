"""Sparsability: what it costs on held-out images when channels of one group alone go.

    d_i = CE(network without the channels, image i) - CE(network, image i);   mean(d) +- 1.96 sd(d) / sqrt(n)

The channels that go are those of least importance, by the recipe's measure; nothing is trained
afterwards, so this is the damage before any recovery. Liu, Cao, Li, Hu, Maybank 2022 (IEEE TPAMI 45(3)) call
a layer sparsable when it takes a high sparsity at little loss; **reconstruction**: that the loss is
taken at once, layer by layer, by masks. Axes: B batch, C channels of a group, N images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from toolchain.quantization.attached import attach_views
from toolchain.structure.masks import mask_channels
from toolchain.structure.plan import Group
from toolchain.training.precision import Precision

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Damage:
    """What one sparsity of one group costs.

    Attributes:
        group: Its name.
        channels: How many it has.
        removed: How many of them are gone.
        sparsity: Asked for.
        loss: Rise of the mean cross-entropy, in nats.
        loss_interval: 95 % of it, over the images.
        top1: Change of top-1 in points; negative is a loss.
    """

    group: str
    channels: int
    removed: int
    sparsity: float
    loss: float
    loss_interval: tuple[float, float]
    top1: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Damage:
        low, high = record["loss_interval"]
        return cls(**{**record, "loss_interval": (low, high)})


def damages(
    network: fx.GraphModule,
    groups: Sequence[Group],
    scores: Callable[[Group], Tensor],
    sparsities: Sequence[float],
    batches: Batches,
    precision: Precision,
    shown: Callable[[int, int], None] = lambda done, total: None,
) -> list[Damage]:
    """Every cuttable group at every sparsity, in the order of the network, which is left as it was.

    Args:
        network: Plain, without views.
        scores: Importance of a group's channels, [C]; larger matters more.
        batches: Held-out images and labels.
        shown: Told how many groups are done, of how many.
    """
    masked = copy.deepcopy(network)
    attach_views(masked)
    precision.place(masked).eval()
    whole_N, right_N = _losses(masked, batches, precision)
    cuttable = [group for group in groups if group.reason is None]
    found = []
    for number, group in enumerate(cuttable):
        order_C = scores(group).argsort(descending=True, stable=True).tolist()
        for sparsity in sparsities:
            stay = max(1, group.channels - round(sparsity * group.channels))
            mask_channels(masked, [group], {group.name: sorted(order_C[:stay])})
            loss_N, hit_N = _losses(masked, batches, precision)
            rise_N = loss_N - whole_N
            mean, spread = float(rise_N.mean()), float(rise_N.std()) if len(rise_N) > 1 else 0.0
            half = 1.959964 * spread / math.sqrt(len(rise_N))
            found.append(
                Damage(
                    group.name,
                    group.channels,
                    group.channels - stay,
                    sparsity,
                    mean,
                    (mean - half, mean + half),
                    100 * float((hit_N - right_N).mean()),
                )
            )
        shown(number + 1, len(cuttable))
    return found


def _losses(
    network: fx.GraphModule, batches: Batches, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image, and 1 where its class is right; [N], float64 on the CPU."""
    losses, hits = [], []
    with torch.inference_mode():
        for images_BCHW, labels_B in batches:
            with precision.autocast():
                logits_BC = network(precision.images(images_BCHW)).float()
            there_B = labels_B.to(logits_BC.device)
            losses.append(F.cross_entropy(logits_BC, there_B, reduction="none").double().cpu())
            hits.append((logits_BC.argmax(1) == there_B).double().cpu())
    return torch.cat(losses), torch.cat(hits)
