"""The only training loop: precision, schedule, clipping, averaging, checkpoints, log and display.

What is minimized comes from an ``Objective``; everything else about training is here. A killed run
that is started again ends with the same bytes on a CPU: the order of the samples and their
augmentation depend on (seed, epoch, step) only, and the checkpoint holds the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import torch
from torch import nn

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
from toolchain.training.resuming import Checkpoint, Counters
from toolchain.training.single_process import accelerator_for
from toolchain.training.tally import Tally
from toolchain.training.trail import Trail

if TYPE_CHECKING:
    from toolchain.data.samples import Data

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
        self._accelerator = accelerator_for(precision)
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
        self._tally = Tally(names, precision.device_type)
        self._trail = Trail()
        self._counters = Counters()
        self._checkpoint = Checkpoint(
            self.folder / "checkpoint.pt",
            network,
            self._optimizers,
            self._average,
            objective,
            precision,
            [config.model_dump(mode="json"), seed, data.fingerprint, names],
        )
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Continue where the checkpoint left off, if there is one."""
        self._counters = self._checkpoint.restore() or self._counters
        self._tally.load(self._counters.sums)

    def run(self) -> FitResult:
        config, total, counters = self._config, self._total, self._counters
        events = self.folder / "tensorboard" if config.tensorboard else None
        log = MetricsLog(self.folder / "metrics.jsonl", step=counters.step, tensorboard=events)
        with log, self._progress.training(self._name, total, step=counters.step) as task:
            while counters.step < total:
                self._network.train()
                mark = time.perf_counter()
                for batch in self._batches():
                    self._one_step(batch)
                    ended = counters.step == total or counters.step % self._epoch_steps == 0
                    looked = ended or self._tally.due(counters.step)
                    if looked:
                        self._look()  # waits for the device: the epoch's clock is right
                    counters.seconds += time.perf_counter() - mark
                    self._log_step(log, looked)
                    if task.due():
                        self._show(task)
                    if ended:
                        self._end_epoch(task, log)
                    if time.monotonic() - self._saved_at >= config.checkpoint_every_s:
                        self._save(log)
                    if counters.step == total:
                        break
                    mark = time.perf_counter()
            self._save(log)
        if self._average is not None:
            self._average.copy_into_network()
        last = {k: v for k, v in counters.history[-1].items() if k.startswith("validation_")}
        return FitResult(
            history=tuple(counters.history),
            steps=counters.step,
            seconds=counters.seconds,
            images_per_s=self._images_per_s(),
            last_validation={k.removeprefix("validation_"): v for k, v in last.items()},
        )

    def _batches(self) -> Iterator[Batch]:
        """What is left of this epoch, on the device."""
        epoch, start = divmod(self._counters.step, self._epoch_steps)
        for drawn in batches(
            self._data,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            start=start,
            device=self._precision.device,
        ):
            images_BCHW = self._precision.images(drawn.images_BCHW)
            yield Batch(images_BCHW, drawn.labels_B, drawn.index_B)

    def _one_step(self, batch: Batch) -> None:
        step = self._counters.step
        self._objective.begin_step(step, self._total)
        factor = learning_rate(step, self._total, self._warmup)
        for update, optimizer, parameters in zip(
            self._updates, self._optimizers, self._parameters, strict=True
        ):
            set_learning_rate(optimizer, factor)
            with self._precision.autocast():
                loss, terms = update.loss(batch)
            # Only what this update moves gets a gradient: shared tensors stay clean of it.
            self._accelerator.backward(loss, inputs=parameters)
            norm = None
            if self._config.clip_norm is not None:
                norm = self._accelerator.clip_grad_norm_(parameters, self._config.clip_norm)
            with update.guard() if update.guard is not None else nullcontext():
                optimizer.step()
            for parameter in self._every:
                parameter.grad = None
            if update.after is not None:
                update.after()
            self._tally.note(update.name, loss, terms, norm)
        if self._average is not None:
            self._average.update(step)
        self._counters.step += 1

    def _end_epoch(self, task: Task, log: MetricsLog) -> None:
        step = self._counters.step
        epoch = step / self._epoch_steps
        numbers = {"epoch": epoch, **self._numbers()}
        if step == self._total or round(epoch) % self._config.validate_every == 0:
            average = self._average.in_network() if self._average is not None else nullcontext()
            self._network.eval()
            with average:
                found = self._validate(self._network)
            numbers |= {f"validation_{k}": v for k, v in found.items()}
            self._network.train()
        self._tally.clear()
        log.write("epoch", step, {**numbers, "images_per_s": self._images_per_s()})
        self._counters.history.append(numbers)
        task.epoch(round(epoch, 2), round(self._total / self._epoch_steps, 2), _told(numbers))

    def _validation(self, network: nn.Module) -> Mapping[str, float]:
        found = evaluate(network, self._data.validation, self._data.preprocess, self._precision)
        return {"top1": found.top1, "loss": found.loss}

    def _look(self) -> None:
        """Stop if a loss, or the norm of a gradient, since the last look was not finite.

        A gradient with such a norm would be clipped to zero, and the training stand still.

        Raises:
            TrainingError: Names the step.
        """
        found = self._tally.look()
        if found is not None:
            steps_ago, what = found
            self._stop(self._counters.step - steps_ago, what)

    def _stop(self, step: int, what: str) -> NoReturn:
        kept = self._checkpoint.path if self._checkpoint.path.exists() else "none yet"
        raise TrainingError(
            f"{self._name}: {what} at step {step} of {self._total}; it must be finite; lower lr "
            f"(now {self._config.lr:g}) or the strengths of losses, or set clip_norm "
            f"(now {self._config.clip_norm}); "
            f"last good checkpoint: {kept}"
        )

    def _numbers(self) -> dict[str, float]:
        """Means of the terms over this epoch so far, learning rate, and the objective's status."""
        self._look()
        before = self._counters.step - 1
        means = self._tally.means(before % self._epoch_steps + 1)
        lr = self._config.lr * learning_rate(before, self._total, self._warmup)
        return {**means, "lr": lr, **self._objective.status()}

    def _log_step(self, log: MetricsLog, looked: bool) -> None:
        """The trail of every step, and now and then the losses."""
        step = self._counters.step
        often = step % self._config.log_every_steps == 0
        self._trail.note(step, self._objective.trail(), events=often)
        if looked or often:
            self._trail.write(log)
        if often:
            log.write("step", step, self._numbers())

    def _show(self, task: Task) -> None:
        numbers = {k: v for k, v in self._numbers().items() if k == "loss" or k.endswith(".loss")}
        shown = {**numbers, **self._objective.status()}
        task.show(self._counters.step, self._images_per_s(), shown)

    def _images_per_s(self) -> float:
        counters = self._counters
        return counters.step * self._batch_size / counters.seconds if counters.seconds else 0.0

    def _save(self, log: MetricsLog) -> None:
        self._look()
        finite = torch.stack([torch.isfinite(p).all() for p in self._every]).all().item()
        if not finite:  # a gradient overflowed under a finite loss
            self._stop(self._counters.step, "a weight is not finite")
        self._trail.write(log)
        log.flush()  # a resumed run takes up the log where the checkpoint is
        self._counters.sums = self._tally.state()
        self._checkpoint.save(self._counters)
        self._saved_at = time.monotonic()


def _told(numbers: Mapping[str, float]) -> dict[str, float]:
    """What is said of an epoch: without strengths, and without a task that is the whole loss."""
    hidden = {"epoch", "lr"} | {k for k in numbers if "strength." in k}
    for key in set(numbers) - hidden:
        if key == "task" or key.endswith(".task"):
            hidden |= {key} if numbers[key] == numbers.get(f"{key[:-4]}loss") else set()
    return {k.replace("_", " "): v for k, v in numbers.items() if k not in hidden}


def _copy_log(folder: Path, out: Path, name: str) -> None:
    shutil.copyfile(folder / "metrics.jsonl", out / f"{name}.metrics.jsonl")
    if (folder / "tensorboard").exists():
        shutil.copytree(folder / "tensorboard", out / f"{name}.tensorboard")
