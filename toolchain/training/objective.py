"""The seam between a method and the training loop: what is minimized, and what it may move.

Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn
from torch.nn import functional as F


class Batch(NamedTuple):
    """What one step sees, on the device.

    Attributes:
        images_BCHW: Normalized and, in training, augmented.
        labels_B: Class indices.
        index_B: int64 positions in the training part, in [0, its length), for losses that remember
            something of every sample; None where the samples are not of the training part.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    index_B: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """One optimizer and the loss that drives it; a step runs an objective's updates in order.

    Attributes:
        name: Key of its optimizer in checkpoints and of its loss in the log.
        parameters: What this update moves; no other parameter gets a gradient from it.
        loss: The scalar to minimize and the terms to log, given a batch; runs under autocast.
        scales: Those of the parameters that are quantizer scales: not decayed, own learning rate.
        lr_factor: Learning rate of this update as a factor of the configured one.
        weight_decay: Of the parameters that are decayed; None takes the configured one.
        decays_all: Also one-axis parameters, biases and norms among them.
        optimizer: Kind of optimizer; None takes the configured one.
        guard: Context around the optimizer's step that holds still what must not move: momentum and
            weight decay move weights that have no gradient.
        after: Called after the optimizer's step.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Batch], tuple[Tensor, Mapping[str, float | Tensor]]]
    scales: Sequence[nn.Parameter] = ()
    lr_factor: float = 1.0
    weight_decay: float | None = None
    decays_all: bool = False
    optimizer: Literal["sgd", "adamw"] | None = None
    guard: Callable[[], AbstractContextManager[object]] | None = None
    after: Callable[[], None] | None = None


class Objective(Protocol):
    """A method, as the training loop sees it."""

    @property
    def updates(self) -> Sequence[Update]:
        """What a step does, in order; asked for once, before the first step."""
        ...

    def begin_step(self, step: int, total_steps: int) -> None:
        """Set what follows a schedule; ``step`` counts from 0."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers beyond the network's own that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...

    def status(self) -> dict[str, float]:
        """Numbers worth watching, e.g. the current sparsity and bits."""
        ...

    def trail(self) -> Mapping[str, float | Tensor]:
        """What is written down of every step, e.g. each strength; asked for after the step.

        Scalars that are on a GPU are handed over as tensors, and read when the losses are: reading
        them here would make every step wait.
        """
        ...


class SupervisedObjective:
    """Cross-entropy with the labels: plain training and fine-tuning.

    Args:
        network: Maps images to logits.
        label_smoothing: Share of the target spread over all classes.
        parameters: What is trained; default all of the network's that want a gradient.
        scales: Quantizer scales among them.
        guard: As in ``Update``.
        after: As in ``Update``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        label_smoothing: float = 0.0,
        parameters: Sequence[nn.Parameter] | None = None,
        scales: Sequence[nn.Parameter] = (),
        guard: Callable[[], AbstractContextManager[object]] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        def loss(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
            logits_BC = network(batch.images_BCHW).float()
            return F.cross_entropy(logits_BC, batch.labels_B, label_smoothing=label_smoothing), {}

        trained = trainable(network) if parameters is None else parameters
        self.updates: Sequence[Update] = (
            Update("task", trained, loss, scales=scales, guard=guard, after=after),
        )

    def begin_step(self, step: int, total_steps: int) -> None:
        """Nothing follows a schedule here."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: everything is in the network."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""

    def status(self) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}

    def trail(self) -> Mapping[str, float]:
        """Nothing moves here but the weights."""
        return {}


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The network's parameters that want a gradient, each once."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
