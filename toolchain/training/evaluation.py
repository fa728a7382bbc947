"""How good a network is on a split: top-1, mean cross-entropy, logits.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import DataError
from toolchain.data.batches import evaluation_batches
from toolchain.data.samples import Preprocess, Split
from toolchain.training.precision import Precision


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split.

    Attributes:
        top1: Percent of samples whose largest logit is the label's.
        loss: Mean cross-entropy in nats.
        n: Number of samples.
    """

    top1: float
    loss: float
    n: int


def evaluate(
    network: nn.Module,
    split: Split,
    preprocess: Preprocess,
    precision: Precision,
    *,
    batch_size: int = 500,
) -> Evaluation:
    """Top-1 and loss of a network in inference mode; its train/eval modes are restored afterwards.

    Raises:
        DataError: The split is empty.
    """
    right = torch.zeros((), dtype=torch.int64, device=precision.device)
    loss = torch.zeros((), dtype=torch.float64, device=precision.device)
    n = 0
    precision.place(network)
    with eval_mode(network):
        for images_NCHW, labels_N in evaluation_batches(
            split, preprocess, batch_size, device=precision.device
        ):
            logits_NC = _infer(network, images_NCHW, precision)
            right += (logits_NC.argmax(1) == labels_N).sum()
            loss += F.cross_entropy(logits_NC, labels_N, reduction="sum").double()
            n += len(labels_N)
    if n == 0:
        raise DataError("evaluation: the split has 0 samples; at least 1 is needed; check the data")
    return Evaluation(100.0 * right.item() / n, loss.item() / n, n)


def predict_logits(
    network: nn.Module,
    split: Split,
    preprocess: Preprocess,
    precision: Precision,
    *,
    batch_size: int = 500,
) -> Tensor:
    """Logits of every sample in order, float32 [N, C] on the CPU.

    Raises:
        DataError: The split is empty.
    """
    precision.place(network)
    with eval_mode(network):
        parts = [
            _infer(network, images_NCHW, precision).cpu()
            for images_NCHW, _ in evaluation_batches(
                split, preprocess, batch_size, device=precision.device
            )
        ]
    if not parts:
        raise DataError("evaluation: the split has 0 samples; at least 1 is needed; check the data")
    return torch.cat(parts)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode and give each module its own mode back afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _infer(network: nn.Module, images_NCHW: Tensor, precision: Precision) -> Tensor:
    with torch.inference_mode(), precision.autocast():
        logits_NC: Tensor = network(precision.images(images_NCHW))
    return logits_NC.float()
