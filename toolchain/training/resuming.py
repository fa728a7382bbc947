"""What a training run needs to go on after a kill as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolchain.training.averaging import WeightAverage
from toolchain.training.objective import Objective
from toolchain.training.precision import Precision
from toolchain.training.state import load_state, save_state


@dataclass
class Counters:
    """How far a run is.

    Attributes:
        step: Steps done.
        seconds: Spent on batches and steps.
        history: One record per epoch.
        sums: Of each term over the steps of this epoch.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: Mapping[str, float] = field(default_factory=dict)


class Checkpoint:
    """The file that holds a run's network, optimizers, averages, objective and random state.

    Attributes:
        path: Where it lies, once there is one.
    """

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        average: WeightAverage | None,
        objective: Objective,
        precision: Precision,
        facts: Sequence[Any],
    ) -> None:
        self.path = path
        self._network, self._optimizers = network, optimizers
        self._average, self._objective = average, objective
        self._cuda = precision.device_type == "cuda"
        self._facts = facts

    def save(self, counters: Counters) -> None:
        """Replace the file by the state as it is now.

        Raises:
            StorageError: The file cannot be written.
        """
        state = {
            "fingerprint": self._fingerprint(),
            "step": counters.step,
            "seconds": counters.seconds,
            "history": counters.history,
            "sums": dict(counters.sums),
            "network": self._network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": None if self._average is None else self._average.tensors,
            "objective": self._objective.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if self._cuda else None,
        }
        save_state(state, self.path)

    def restore(self) -> Counters | None:
        """Put the saved state back in place; None if there is nothing to resume.

        Raises:
            CheckpointError: The file is damaged or belongs to something else.
        """
        state = load_state(self.path, self._fingerprint())
        if state is None:
            return None
        self._network.load_state_dict(state["network"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self._average is not None:
            self._average.load(state["average"])
        self._objective.load_state_dict(state["objective"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self._cuda:
            torch.cuda.set_rng_state(state["rng_cuda"])
        sums = {name: float(value) for name, value in state["sums"].items()}
        return Counters(state["step"], state["seconds"], state["history"], sums)

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to fit."""
        shapes = {k: list(v.shape) for k, v in self._network.state_dict().items()}
        return hashlib.sha256(json.dumps([*self._facts, shapes]).encode()).hexdigest()
