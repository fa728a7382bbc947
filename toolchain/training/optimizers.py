"""Optimizers and the learning rate's schedule: linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from toolchain.quantization.activations import ActivationQuantizer
from toolchain.quantization.weights import WeightQuantizer
from toolchain.training.config import Training
from toolchain.training.objective import Update


def learning_rate(step: int, total_steps: int, warmup: int) -> float:
    """Factor on the learning rate at ``step`` (from 0): up to 1 in ``warmup`` steps, then a cosine.

    >>> [round(learning_rate(step, 6, 2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))


def warmup_steps(config: Training, epoch_steps: int, total_steps: int) -> int:
    """Length of the warm-up, at most half of the run."""
    return min(round(config.warmup_epochs * epoch_steps), total_steps // 2)


def quantizer_scales(network: nn.Module) -> list[nn.Parameter]:
    """The step sizes that quantizers learn, in the order of the modules; none where they follow."""
    return [
        parameter
        for module in network.modules()
        if isinstance(module, ActivationQuantizer | WeightQuantizer)
        for parameter in module.parameters(recurse=False)
    ]


def make_optimizer(update: Update, config: Training) -> torch.optim.Optimizer:
    """The optimizer of one update; quantizer scales are not decayed, and one axis only where asked for."""
    scales = {id(p) for p in update.scales}
    wanted = [p for p in update.parameters if p.requires_grad]
    others = [p for p in wanted if id(p) not in scales]
    lr = config.lr * update.lr_factor
    decay = config.weight_decay if update.weight_decay is None else update.weight_decay
    decayed = [p for p in others if p.dim() > 1]
    plain = [p for p in others if p.dim() <= 1]
    learned = [p for p in wanted if id(p) in scales]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": lr, "weight_decay": decay},
        {"params": plain, "lr": lr, "weight_decay": decay if update.decays_all else 0.0},
        {"params": learned, "lr": lr * config.scale_lr, "weight_decay": 0.0},
    ]
    groups = [{**group, "lr_full": group["lr"]} for group in groups if group["params"]]
    # foreach is not torch's default on a CPU, and takes 0.6 of its time there (ResNet-20).
    if (update.optimizer or config.optimizer) == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=True)
    nesterov = config.nesterov and config.momentum > 0  # torch refuses it without momentum
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=nesterov, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` of its full one."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["lr_full"]
