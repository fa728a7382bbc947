"""The only training loop: precision, schedule, clipping, averaging, checkpoints, log and display.

What is minimized comes from an ``Objective``; everything else about training is here. A killed run
that is started again ends with the same bytes on a CPU: the order of the samples and their
augmentation depend on (seed, epoch, step) only, and the checkpoint holds the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import torch
from torch import Tensor, nn

from deploy.errors import ConfigError, DataError, TrainingError
from toolchain.data.batches import batches
from toolchain.training.averaging import WeightAverage
from toolchain.training.config import Training
from toolchain.training.evaluation import evaluate
from toolchain.training.metrics_log import MetricsLog
from toolchain.training.objective import Batch, Objective
from toolchain.training.optimizers import (
    learning_rate,
    make_optimizer,
    set_learning_rate,
    warmup_steps,
)
from toolchain.training.precision import Precision, choose_precision
from toolchain.training.progress import Progress, Task
from toolchain.training.state import load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

    from toolchain.data.samples import Data

# On a GPU, looking at a loss waits for the device, so there the losses are looked at in batches.
LOOK_EVERY_STEPS_GPU = 20

Validate = Callable[[nn.Module], Mapping[str, float]]


class TrainingContext(Protocol):
    """What training needs of the run; ``RunContext`` is one."""

    @property
    def progress(self) -> Progress | None:
        """Where to show how far it is; None shows nothing."""
        ...

    def scratch(self, key: str) -> Path:
        """A folder that survives a kill."""
        ...


@dataclass(frozen=True)
class FitResult:
    """How a training run went.

    Attributes:
        history: One record per epoch: ``epoch``, ``loss``, each term's mean, validation numbers.
        steps: Optimizer steps of each update, all told.
        seconds: Time spent on batches and steps, over all resumed parts.
        images_per_s: Training throughput, validation and checkpoints not counted.
        last_validation: Validation of the network as it was left.
    """

    history: tuple[dict[str, float], ...]
    steps: int
    seconds: float
    images_per_s: float
    last_validation: dict[str, float]


def fit(
    network: nn.Module,
    objective: Objective,
    data: Data,
    config: Training,
    ctx: TrainingContext,
    *,
    seed: int,
    name: str = "training",
    precision: Precision | None = None,
    validate: Validate | None = None,
    out: Path | None = None,
) -> FitResult:
    """Train ``network`` in place, resuming from the checkpoint in ``ctx.scratch(name)`` if any.

    Args:
        network: Moved to the device and memory format of ``precision``; left in eval mode.
        objective: What is minimized; its parameters are on the device after ``network`` is moved.
        data: Training and validation part.
        config: Length, optimizer, checkpoints.
        ctx: Scratch folder and display.
        seed: Of data order, augmentation and dropout.
        name: Of this training within its stage: checkpoint folder, display, log.
        precision: Default is the best of this machine.
        validate: Numbers of the network in eval mode; default top-1 and loss on validation.
        out: Folder into which the finished log (and TensorBoard's events) is copied.

    Raises:
        TrainingError: The loss is not finite, or several processes were started.
        ConfigError: Two updates of the objective have the same name.
        DataError: There is nothing to train on.
        StorageError: A checkpoint cannot be written.
        CheckpointError: The checkpoint to resume from is damaged or belongs to something else.
        MissingDependency: TensorBoard is asked for and not installed.
    """
    precision = precision or choose_precision()
    precision.place(network)
    loop = _Loop(network, objective, data, config, seed, name, precision, ctx, validate)
    cuda = [torch.cuda.current_device()] if precision.device_type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        loop.restore()
        result = loop.run()
    network.eval()
    if out is not None:
        _copy_log(loop.folder, out, name)
    return result


class _Loop:
    """One training run: its counters, optimizers and the step."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        data: Data,
        config: Training,
        seed: int,
        name: str,
        precision: Precision,
        ctx: TrainingContext,
        validate: Validate | None,
    ) -> None:
        self.folder = ctx.scratch(name)
        self._network, self._objective, self._data = network, objective, data
        self._config, self._seed, self._name = config, seed, name
        self._precision = precision
        self._progress = ctx.progress or Progress(quiet=True)
        self._validate = validate or self._validation
        self._accelerator = _accelerator(precision)
        samples = len(data.train)
        if samples == 0:
            raise DataError(f"{name}: the training part has 0 samples; at least 1 is needed")
        self._epoch_steps = max(1, samples // config.batch_size)
        self._batch_size = min(config.batch_size, samples)
        self._total = max(1, round(config.epochs * self._epoch_steps))
        self._warmup = warmup_steps(config, self._epoch_steps, self._total)
        self._updates = list(objective.updates)
        names = [update.name for update in self._updates]
        if len(set(names)) < len(names):
            raise ConfigError(f"{name}: updates {names}; their names must differ; rename one")
        self._optimizers = [make_optimizer(update, config) for update in self._updates]
        self._parameters = [[p for p in u.parameters if p.requires_grad] for u in self._updates]
        self._every = list({id(p): p for ps in self._parameters for p in ps}.values())
        self._average = None if config.ema is None else WeightAverage(network, config.ema)
        self._look_every = LOOK_EVERY_STEPS_GPU if precision.device_type == "cuda" else 1
        self._unseen: list[Tensor] = []  # losses of steps that were not looked at yet
        self._sums: dict[str, Tensor] = {}  # of each term over the steps of this epoch
        self._step = 0
        self._seconds = 0.0
        self._history: list[dict[str, float]] = []
        self._saved_at = time.monotonic()

    # -- the run

    def run(self) -> FitResult:
        config, total = self._config, self._total
        events = self.folder / "tensorboard" if config.tensorboard else None
        log = MetricsLog(self.folder / "metrics.jsonl", step=self._step, tensorboard=events)
        with log, self._progress.training(self._name, total, step=self._step) as task:
            while self._step < total:
                self._network.train()
                mark = time.perf_counter()
                for batch in self._batches():
                    self._one_step(batch)
                    if self._step % self._look_every == 0 or self._step % self._epoch_steps == 0:
                        self._look()  # waits for the device: the epoch's clock is right
                    self._seconds += time.perf_counter() - mark
                    if self._step % config.log_every_steps == 0:
                        log.write("step", self._step, self._numbers())
                    if task.due():
                        self._show(task)
                    if self._step == total or self._step % self._epoch_steps == 0:
                        self._end_epoch(task, log)
                    if time.monotonic() - self._saved_at >= config.checkpoint_every_s:
                        self._save()
                    if self._step == total:
                        break
                    mark = time.perf_counter()
            self._save()
        if self._average is not None:
            self._average.copy_into_network()
        last = {k: v for k, v in self._history[-1].items() if k.startswith("validation_")}
        return FitResult(
            history=tuple(self._history),
            steps=self._step,
            seconds=self._seconds,
            images_per_s=self._images_per_s(),
            last_validation={k.removeprefix("validation_"): v for k, v in last.items()},
        )

    def _batches(self) -> Iterator[Batch]:
        """What is left of this epoch, on the device."""
        epoch, start = divmod(self._step, self._epoch_steps)
        source = batches(self._data, self._batch_size, seed=self._seed, epoch=epoch, start=start)
        for images_BCHW, labels_B in source:
            labels_B = labels_B.to(self._precision.device, non_blocking=True)
            yield Batch(self._precision.images(images_BCHW), labels_B)

    def _one_step(self, batch: Batch) -> None:
        self._objective.begin_step(self._step, self._total)
        factor = learning_rate(self._step, self._total, self._warmup)
        for update, optimizer, parameters in zip(
            self._updates, self._optimizers, self._parameters, strict=True
        ):
            set_learning_rate(optimizer, factor)
            with self._precision.autocast():
                loss, terms = update.loss(batch)
            # Only what this update moves gets a gradient: shared tensors stay clean of it.
            self._accelerator.backward(loss, inputs=parameters)
            if self._config.clip_norm is not None:
                self._accelerator.clip_grad_norm_(parameters, self._config.clip_norm)
            with update.guard() if update.guard is not None else nullcontext():
                optimizer.step()
            for parameter in self._every:
                parameter.grad = None
            if update.after is not None:
                update.after()
            self._note(update.name, loss, terms)
        if self._average is not None:
            self._average.update(self._step)
        self._step += 1

    def _end_epoch(self, task: Task, log: MetricsLog) -> None:
        self._look()
        epoch = self._step / self._epoch_steps
        numbers = {"epoch": epoch, **self._numbers()}
        if self._step == self._total or round(epoch) % self._config.validate_every == 0:
            average = self._average.in_network() if self._average is not None else nullcontext()
            self._network.eval()
            with average:
                found = self._validate(self._network)
            numbers |= {f"validation_{k}": v for k, v in found.items()}
            self._network.train()
        self._sums.clear()
        log.write("epoch", self._step, {**numbers, "images_per_s": self._images_per_s()})
        self._history.append(numbers)
        hidden = {"epoch", "lr"} | {k for k in numbers if "strength." in k}
        for key in set(numbers) - hidden:  # without other terms the task is the loss
            if key == "task" or key.endswith(".task"):
                hidden |= {key} if numbers[key] == numbers.get(f"{key[:-4]}loss") else set()
        shown = {k.replace("_", " "): v for k, v in numbers.items() if k not in hidden}
        task.epoch(round(epoch, 2), round(self._total / self._epoch_steps, 2), shown)

    def _validation(self, network: nn.Module) -> Mapping[str, float]:
        found = evaluate(network, self._data.validation, self._data.preprocess, self._precision)
        return {"top1": found.top1, "loss": found.loss}

    # -- what is known about the losses

    def _note(self, update: str, loss: Tensor, terms: Mapping[str, float | Tensor]) -> None:
        """Add to this epoch's sums without waiting for the device."""
        self._unseen.append(loss.detach())
        prefix = f"{update}." if len(self._updates) > 1 else ""
        for name, value in {"loss": loss, **terms}.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            key = prefix + name
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _look(self) -> None:
        """Stop if a loss since the last look was not finite.

        Raises:
            TrainingError: Names the step.
        """
        if not self._unseen:
            return
        losses, self._unseen = torch.stack(self._unseen).tolist(), []
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                steps = -(-len(losses) // len(self._updates))
                self._stop(self._step - steps + index // len(self._updates) + 1, f"loss is {loss}")

    def _stop(self, step: int, what: str) -> NoReturn:
        kept = self._checkpoint if self._checkpoint.exists() else "none yet"
        raise TrainingError(
            f"{self._name}: {what} at step {step} of {self._total}; it must be finite; lower lr "
            f"(now {self._config.lr:g}), or set clip_norm (now {self._config.clip_norm}); "
            f"last good checkpoint: {kept}"
        )

    def _numbers(self) -> dict[str, float]:
        """Means of the terms over this epoch so far, learning rate, and the objective's status."""
        done = (self._step - 1) % self._epoch_steps + 1
        means = {name: value.item() / done for name, value in self._sums.items()}
        factor = learning_rate(self._step - 1, self._total, self._warmup)
        return {**means, "lr": self._config.lr * factor, **self._objective.status()}

    def _show(self, task: Task) -> None:
        numbers = {k: v for k, v in self._numbers().items() if k == "loss" or k.endswith(".loss")}
        task.show(self._step, self._images_per_s(), {**numbers, **self._objective.status()})

    def _images_per_s(self) -> float:
        return self._step * self._batch_size / self._seconds if self._seconds else 0.0

    # -- checkpoints

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to fit."""
        shapes = {k: list(v.shape) for k, v in self._network.state_dict().items()}
        facts = [self._config.model_dump(mode="json"), self._seed, self._data.fingerprint, shapes]
        facts.append([update.name for update in self._updates])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _save(self) -> None:
        self._look()
        finite = torch.stack([torch.isfinite(p).all() for p in self._every]).all().item()
        if not finite:  # a gradient overflowed under a finite loss
            self._stop(self._step, "a weight is not finite")
        cuda = self._precision.device_type == "cuda"
        state = {
            "fingerprint": self._fingerprint(),
            "step": self._step,
            "seconds": self._seconds,
            "history": self._history,
            "sums": self._sums,
            "network": self._network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": None if self._average is None else self._average.tensors,
            "objective": self._objective.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if cuda else None,
        }
        save_state(state, self._checkpoint)
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Continue where the checkpoint left off, if there is one."""
        state = load_state(self._checkpoint, self._fingerprint())
        if state is None:
            return
        device = self._precision.device
        self._step, self._seconds = state["step"], state["seconds"]
        self._history = state["history"]
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._network.load_state_dict(state["network"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self._average is not None:
            self._average.load(state["average"])
        self._objective.load_state_dict(state["objective"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self._precision.device_type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"])


def _accelerator(precision: Precision) -> Accelerator:
    """accelerate's object for one process on this device.

    Autocast is the precision's own: accelerate's empties and refills the process's environment each
    time it is entered. Its state is shared by the whole process, so training on another kind of
    device has to make it forget the first.

    Raises:
        TrainingError: Several processes were started.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    cpu = precision.device_type == "cpu"
    known = AcceleratorState._shared_state
    if known and (known["_cpu"], known["_mixed_precision"]) != (cpu, "no"):
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"training: started as {accelerator.num_processes} processes; only 1 is supported; "
            "start compress-deploy without a launcher"
        )
    return accelerator


def _copy_log(folder: Path, out: Path, name: str) -> None:
    shutil.copyfile(folder / "metrics.jsonl", out / f"{name}.metrics.jsonl")
    if (folder / "tensorboard").exists():
        shutil.copytree(folder / "tensorboard", out / f"{name}.tensorboard")
