"""The training loop: what it moves, what it leaves, and that resuming gives the same bytes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependency,
    StorageError,
    TrainingError,
)
from toolchain.data.samples import Augment, Data, Preprocess, Split
from toolchain.training.config import Training
from toolchain.training.evaluation import evaluate, predict_logits
from toolchain.training.loop import FitResult, fit
from toolchain.training.metrics_log import MetricsLog
from toolchain.training.objective import Batch, Objective, SupervisedObjective, Update
from toolchain.training.optimizers import learning_rate, make_optimizer, warmup_steps
from toolchain.training.precision import choose_precision
from toolchain.training.progress import Progress
from toolchain.training.state import load_state, save_state

FLOAT = choose_precision("float32", "cpu")
BF16 = choose_precision("bf16", "cpu")


class Context:
    """A run's scratch folder, and no display."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.progress: Progress | None = None

    def scratch(self, key: str) -> Path:
        folder = self.root / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def make_data(samples: int = 48) -> Data:
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.arange(samples) % 3
    pixels = torch.randint(0, 120, (samples, 8, 8, 3), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(samples), :, :, labels_N] += 100  # one bright channel per class
    split = Split.in_memory(pixels, labels_N)
    return Data(
        train=split,
        validation=split,
        test=split,
        classes=("r", "g", "b"),
        input_shape=(3, 8, 8),
        preprocess=Preprocess((0.5,) * 3, (0.25,) * 3),
        augment=Augment(crop=1, flip=True),
        skipped=(),
        fingerprint=f"made {samples}",
    )


def make_network(dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, 3),
    )


def settings(**changes: Any) -> Training:
    return Training(**{"epochs": 2, "batch_size": 12, "checkpoint_every_s": 0.0, **changes})


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


class Two:
    """Two updates over parts of one network, with a state of its own that follows the steps."""

    def __init__(self, network: nn.Sequential, die_at: int | None = None) -> None:
        self.drift = torch.zeros(3)
        self.die_at = die_at
        self.calls: list[str] = []
        self.frozen = network[0].weight.detach().clone()[:2]

        def loss_of(name: str) -> Callable[[Batch], tuple[Tensor, Mapping[str, float | Tensor]]]:
            def loss(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
                self.calls.append(name)
                logits_BC = network(batch.images_BCHW).float() + self.drift
                return F.cross_entropy(logits_BC, batch.labels_B), {"norm": logits_BC.norm()}

            return loss

        @contextmanager
        def guard() -> Any:
            weight = network[0].weight
            kept = weight.detach()[:2].clone()
            yield
            with torch.no_grad():
                weight[:2] = kept

        def after() -> None:
            self.calls.append("after")

        body = [*network[0].parameters(), *network[1].parameters()]
        head = list(network[6].parameters())
        self.updates = (
            Update("body", body, loss_of("body"), guard=guard, after=after),
            Update("head", head, loss_of("head"), lr_factor=0.5, optimizer="adamw"),
        )

    def begin_step(self, step: int, total_steps: int) -> None:
        if step == self.die_at:
            raise Killed
        self.drift = self.drift + 0.01 * step

    def state_dict(self) -> dict[str, Any]:
        return {"drift": self.drift}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drift = state["drift"]

    def status(self) -> dict[str, float]:
        return {"drift": float(self.drift[0])}

    def trail(self) -> dict[str, float]:
        return {"strength.drift": float(self.drift[0]), "strength.none": math.nan}


class One(SupervisedObjective):
    """Plain training that can be killed."""

    def __init__(self, network: nn.Module, die_at: int | None = None) -> None:
        super().__init__(network)
        self.die_at = die_at

    def begin_step(self, step: int, total_steps: int) -> None:
        if step == self.die_at:
            raise Killed


def file_bytes(network: nn.Module) -> bytes:
    memory = io.BytesIO()
    torch.save(network.state_dict(), memory)
    return memory.getvalue()


def run(
    make: Callable[..., Objective],
    folder: Path,
    config: Training,
    die_at: int | None = None,
    **options: Any,
) -> tuple[nn.Module, FitResult]:
    network = make_network()
    objective = make(network, die_at)
    options = {"seed": 5, "precision": FLOAT, **options}
    return network, fit(network, objective, make_data(), config, Context(folder), **options)


@pytest.mark.parametrize("make", [One, Two])
@pytest.mark.parametrize("die_at", [1, 4, 6])  # inside an epoch of 4 steps, and between two
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_killed_run_resumes_to_the_same_bytes(
    make: Callable[..., Objective], die_at: int, ema: float | None, tmp_path: Path
) -> None:
    config = settings(ema=ema, log_every_steps=1)
    whole, result = run(make, tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(make, tmp_path / "killed", config, die_at)
    resumed, again = run(make, tmp_path / "killed", config)
    assert file_bytes(resumed) == file_bytes(whole)
    assert again.history == result.history
    logs = [tmp_path / name / "training" / "metrics.jsonl" for name in ("whole", "killed")]
    steps = [[json.loads(line)["step"] for line in log.read_text().splitlines()] for log in logs]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("die_at", [1, 4, 6])
def test_the_trail_has_every_step_once_however_often_it_was_killed(
    die_at: int, tmp_path: Path
) -> None:
    def trail(folder: Path) -> list[str]:
        lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
        return [line for line in lines if json.loads(line)["kind"] == "trail"]

    # Checkpoints two steps apart at the most: what was logged after one is done and logged again.
    config = settings(log_every_steps=3)
    run(Two, tmp_path / "whole", config)
    for at in (die_at, die_at, die_at + 1):
        with pytest.raises(Killed):
            run(Two, tmp_path / "killed", config, at)
    run(Two, tmp_path / "killed", config)
    assert trail(tmp_path / "killed") == trail(tmp_path / "whole")
    records = [json.loads(line) for line in trail(tmp_path / "whole")]
    assert [record["step"] for record in records] == list(range(1, 9))
    drift = [sum(range(step)) * 0.01 for step in range(1, 9)]
    assert [record["strength.drift"] for record in records] == pytest.approx(drift)
    assert {record["strength.none"] for record in records} == {None}


def test_a_process_that_vanishes_leaves_the_trail_up_to_its_checkpoint(tmp_path: Path) -> None:
    """Lines that were only buffered are lost with the process, and none of them is needed."""
    config = settings(log_every_steps=1000, checkpoint_every_s=1e9)
    path = tmp_path / "training" / "metrics.jsonl"
    on_disk: list[int] = []

    class Watched(Two):
        def begin_step(self, step: int, total_steps: int) -> None:
            super().begin_step(step, total_steps)
            on_disk.append(len(path.read_text().splitlines()))

    run(Watched, tmp_path, config)
    assert on_disk == [0] * 4 + [5] * 4  # with the epoch's own line, and not before


def test_nothing_to_trail_is_no_line(tmp_path: Path) -> None:
    run(One, tmp_path, settings())
    lines = (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"epoch"}


def test_tensorboard_gets_the_trail_as_often_as_the_losses(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    run(Two, tmp_path, settings(tensorboard=True, log_every_steps=3))
    events = accumulator.EventAccumulator(str(tmp_path / "training" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("trail/strength.drift")] == [3, 6]
    assert [event.step for event in events.Scalars("step/body.loss")] == [3, 6]


def test_a_step_knows_where_its_samples_are(tmp_path: Path) -> None:
    data, seen = make_data(), []
    network = make_network()

    def loss(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        assert batch.index_B is not None
        assert torch.equal(data.train.labels_N[batch.index_B], batch.labels_B)
        seen.append(batch.index_B)
        return F.cross_entropy(network(batch.images_BCHW), batch.labels_B), {}

    objective = SupervisedObjective(network)
    objective.updates = (Update("task", list(network.parameters()), loss),)
    fit(network, objective, data, settings(), Context(tmp_path), seed=0, precision=FLOAT)
    epochs = torch.cat(seen).view(2, 48)
    assert all(sorted(epoch.tolist()) == list(range(48)) for epoch in epochs)


def test_resuming_in_bf16_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, _ = run(One, tmp_path / "a", settings(), precision=BF16)
    with pytest.raises(Killed):
        run(One, tmp_path / "b", settings(), 5, precision=BF16)
    resumed, _ = run(One, tmp_path / "b", settings(), precision=BF16)
    assert file_bytes(resumed) == file_bytes(whole)


def test_a_finished_run_is_found_and_not_repeated(tmp_path: Path) -> None:
    whole, result = run(One, tmp_path, settings(ema=0.5))
    again, found = run(One, tmp_path, settings(ema=0.5), die_at=0)
    assert file_bytes(again) == file_bytes(whole)
    assert found.history == result.history
    assert found.last_validation == result.last_validation


def test_it_learns_and_validates_the_network_it_leaves(tmp_path: Path) -> None:
    network = make_network(dropout=0.0)
    data = make_data()
    config = settings(epochs=12, ema=0.5)
    result = fit(
        network,
        SupervisedObjective(network),
        data,
        config,
        Context(tmp_path),
        seed=0,
        precision=FLOAT,
        out=tmp_path,
    )
    found = evaluate(network, data.validation, data.preprocess, FLOAT)
    assert result.last_validation == {"top1": found.top1, "loss": found.loss}
    assert found.top1 > 90
    assert result.steps == 48
    assert not network.training
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < losses[0]
    records = [
        json.loads(x) for x in (tmp_path / "training.metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [r["step"] for r in records if r["kind"] == "epoch"] == list(range(4, 49, 4))


def test_the_step_is_the_optimizers_step_written_by_hand(tmp_path: Path) -> None:
    """Against torch alone: SGD with decay on weights, warm-up and cosine, clipped."""
    network, other = make_network(0.0), make_network(0.0)
    config = settings(epochs=1, clip_norm=0.5, warmup_epochs=0.25)
    seen: list[Batch] = []

    def loss(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        seen.append(batch)
        return F.cross_entropy(network(batch.images_BCHW), batch.labels_B), {}

    class Recording(SupervisedObjective):
        updates = (Update("task", list(network.parameters()), loss),)

        def __init__(self) -> None:
            """Nothing to make."""

    fit(network, Recording(), make_data(), config, Context(tmp_path), seed=0, precision=FLOAT)
    momenta = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    other.train()
    for step, batch in enumerate(seen):
        other.zero_grad()
        F.cross_entropy(other(batch.images_BCHW), batch.labels_B).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in other.parameters()))
        lr = 0.1 * (1.0 if step == 0 else 0.5 + 0.5 * math.cos(math.pi * (step - 1) / 3))
        for name, p in other.named_parameters():
            g = p.grad * min(1.0, 0.5 / (norm + 1e-6))
            if name in ("0.weight", "6.weight"):
                g = g + 5e-4 * p.detach()
            momenta[name] = g if step == 0 else 0.9 * momenta[name] + g
            p.data -= lr * (g + 0.9 * momenta[name])
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_each_update_moves_its_own_parameters_and_the_guard_holds(tmp_path: Path) -> None:
    network = make_network()
    objective = Two(network)
    held = network[0].weight.detach()[:2].clone()
    moved = network[0].weight.detach()[2:].clone()
    head = network[6].weight.detach().clone()
    config = settings(lr=0.05, weight_decay=0.1)
    fit(network, objective, make_data(), config, Context(tmp_path), seed=0, precision=FLOAT)
    assert torch.equal(network[0].weight[:2], held)
    assert not torch.equal(network[0].weight[2:], moved)
    assert not torch.equal(network[6].weight, head)
    assert objective.calls[:6] == ["body", "after", "head", "body", "after", "head"]


def test_gradients_reach_only_the_updates_own_parameters(tmp_path: Path) -> None:
    network = make_network()
    grads: list[bool] = []

    def after() -> None:
        grads.append(any(p.grad is not None for p in network.parameters()))

    @contextmanager
    def guard() -> Any:
        grads.append(network[0].weight.grad is not None)
        yield

    objective = SupervisedObjective(
        network, parameters=list(network[6].parameters()), guard=guard, after=after
    )
    before = network[0].weight.detach().clone()
    fit(network, objective, make_data(), settings(), Context(tmp_path), seed=0, precision=FLOAT)
    assert grads
    assert not any(grads)
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_the_step(value: float, tmp_path: Path) -> None:
    network = make_network()
    calls = [0]

    def loss(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        calls[0] += 1
        logits_BC = network(batch.images_BCHW)
        factor = value if calls[0] == 4 else 1.0
        return factor * F.cross_entropy(logits_BC, batch.labels_B), {}

    objective = SupervisedObjective(network)
    objective.updates = (Update("task", list(network.parameters()), loss),)
    with pytest.raises(TrainingError, match=r"at step 4 of 8.*checkpoint\.pt"):
        fit(network, objective, make_data(), settings(), Context(tmp_path), seed=0, precision=FLOAT)
    state = torch.load(tmp_path / "training" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    assert all(torch.isfinite(v).all() for v in state["network"].values())


def test_a_gradient_that_is_not_finite_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    network = make_network()
    steps = [0]

    def guard() -> AbstractContextManager[None]:
        steps[0] += 1
        if steps[0] == 3:
            network[6].bias.grad = torch.full((3,), math.nan)

        @contextmanager
        def nothing() -> Any:
            yield

        return nothing()

    objective = SupervisedObjective(network, guard=guard)
    with pytest.raises(TrainingError, match="weight is not finite at step 3 of 8"):
        fit(network, objective, make_data(), settings(), Context(tmp_path), seed=0, precision=FLOAT)
    state = torch.load(tmp_path / "training" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_gradient_too_large_to_be_clipped_stops_the_training(
    tmp_path: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The square of 1e30 overflows: by such a norm a gradient is clipped to zero, loss after finite loss."""
    if (
        not at_once
    ):  # on a GPU losses are looked at now and then, at the end of an epoch at the latest
        monkeypatch.setattr("toolchain.training.tally.Tally.due", lambda *_: False)
    network, calls = make_network(), [0]

    def loss(batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        calls[0] += 1
        factor = 1e30 if calls[0] == 2 else 1.0
        return factor * F.cross_entropy(network(batch.images_BCHW), batch.labels_B), {}

    objective = SupervisedObjective(network)
    objective.updates = (Update("task", list(network.parameters()), loss),)
    with pytest.raises(TrainingError, match="norm is inf at step 2 of 8.*strengths of losses"):
        fit(network, objective, make_data(), settings(), Context(tmp_path), seed=0, precision=FLOAT)
    assert calls[0] < 8


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    """Against the recursion written out, weights taken after every step."""
    network = make_network()
    seen = [[p.detach().clone() for p in network.parameters()]]
    objective = SupervisedObjective(
        network, after=lambda: seen.append([p.detach().clone() for p in network.parameters()])
    )
    fit(
        network,
        objective,
        make_data(),
        settings(ema=0.3),
        Context(tmp_path),
        seed=0,
        precision=FLOAT,
    )
    average = seen[0]
    for step, weights in enumerate(seen[1:]):
        d = min(0.3, (1 + step) / (10 + step))
        average = [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]
    for p, expected in zip(network.parameters(), average, strict=True):
        torch.testing.assert_close(p.detach(), expected)
    assert not torch.equal(seen[-1][0], average[0])


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    network = make_network()
    torch.manual_seed(123)
    objective = SupervisedObjective(network)
    fit(network, objective, make_data(), settings(), Context(tmp_path), seed=0, precision=FLOAT)
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_samples_than_a_batch_are_one_step_an_epoch(tmp_path: Path) -> None:
    network = make_network()
    objective = SupervisedObjective(network)
    data = make_data(6)
    result = fit(network, objective, data, settings(), Context(tmp_path), seed=0, precision=FLOAT)
    assert result.steps == 2


def test_part_of_an_epoch_is_validated_at_its_end(tmp_path: Path) -> None:
    config = settings(epochs=1.5, validate_every=5)
    _, result = run(One, tmp_path, config)
    assert result.steps == 6
    assert [record["epoch"] for record in result.history] == [1.0, 1.5]
    assert "validation_top1" not in result.history[0]
    assert set(result.last_validation) == {"top1", "loss"}


def test_no_samples_are_refused(tmp_path: Path) -> None:
    network = make_network()
    objective = SupervisedObjective(network)
    with pytest.raises(DataError, match="0 samples"):
        fit(network, objective, make_data(0), settings(), Context(tmp_path), seed=0)


def test_updates_of_one_name_are_refused(tmp_path: Path) -> None:
    network = make_network()
    objective = SupervisedObjective(network)
    objective.updates = [*objective.updates, *objective.updates]
    with pytest.raises(ConfigError, match="rename"):
        fit(network, objective, make_data(), settings(), Context(tmp_path), seed=0)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(One, tmp_path, settings())
    with pytest.raises(CheckpointError, match="other settings"):
        run(One, tmp_path, settings(lr=0.2))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="delete it"):
        load_state(path, "x")


def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state({"fingerprint": "x", "step": 1}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("toolchain.training.state.os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save_state({"fingerprint": "x", "step": 2}, path)
    state = load_state(path, "x")
    assert state is not None
    assert state["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_tensorboard_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependency, match=r"compress-deploy\[tensorboard\]"):
        run(One, tmp_path, settings(tensorboard=True))


def test_the_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.write("step", step, {"loss": math.nan if step == 2 else 1.0})
    with path.open("a") as file:
        file.write('{"kind": "st')
    with MetricsLog(path, step=2) as log:
        log.write("step", 3, {"loss": 0.5})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, None), (3, 0.5)]


def test_decay_reaches_weights_only_and_scales_have_their_own_rate() -> None:
    network = make_network()
    scale = nn.Parameter(torch.ones(8, 1, 1, 1))
    update = Update(
        "x",
        [*network.parameters(), scale],
        lambda batch: (torch.zeros(()), {}),
        scales=[scale],
        lr_factor=0.5,
    )
    groups = make_optimizer(update, settings(scale_lr=0.1)).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert [decay[id(p)] for p in network.parameters()] == [5e-4, 0, 0, 5e-4, 0]
    assert decay[id(scale)] == 0
    assert rate[id(scale)] == pytest.approx(0.005)
    assert rate[id(network[0].weight)] == pytest.approx(0.05)


def test_an_update_may_decay_otherwise_and_takes_up_a_checkpoint_from_before_that() -> None:
    network = make_network()

    def update(**own: Any) -> Update:
        return Update("x", list(network.parameters()), lambda batch: (torch.zeros(()), {}), **own)

    own = make_optimizer(update(weight_decay=1e-3), settings())
    assert [group["weight_decay"] for group in own.param_groups] == [1e-3, 0]
    whole = make_optimizer(update(weight_decay=1e-3, decays_all=True), settings())
    assert [group["weight_decay"] for group in whole.param_groups] == [1e-3, 1e-3]
    none = make_optimizer(update(weight_decay=0.0), settings())
    assert [group["weight_decay"] for group in none.param_groups] == [0, 0]
    own.load_state_dict(make_optimizer(update(), settings()).state_dict())
    # A training that is taken up again ends as it began.
    assert [group["weight_decay"] for group in own.param_groups] == [5e-4, 0]


@given(st.integers(1, 60), st.floats(0, 20), st.integers(1, 10))
def test_learning_rate_rises_to_one_then_falls(total: int, epochs: float, epoch_steps: int) -> None:
    warmup = warmup_steps(settings(warmup_epochs=epochs), epoch_steps, total)
    rates = [learning_rate(step, total, warmup) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_evaluation_counts_and_restores_modes() -> None:
    network, data = make_network(), make_data()
    network.train()
    network[1].eval()
    statistics = network[1].running_mean.clone()
    found = evaluate(network, data.test, data.preprocess, FLOAT, batch_size=7)
    logits_NC = predict_logits(network, data.test, data.preprocess, FLOAT, batch_size=11)
    right = int((logits_NC.argmax(1) == data.test.labels_N).sum())
    assert found.n == 48
    assert found.top1 == pytest.approx(100 * right / 48)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits_NC, data.test.labels_N)))
    assert torch.equal(network[1].running_mean, statistics)
    assert network.training
    assert network[0].training
    assert not network[1].training


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="0 samples"):
        evaluate(make_network(), make_data(0).test, make_data().preprocess, FLOAT)
