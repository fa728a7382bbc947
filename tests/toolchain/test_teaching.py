"""Teaching in the chain: what a student learned from leaves no trace in it, and every controller resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deploy.errors import CompressDeployError, ConfigError
from toolchain.dean import controller as dean
from toolchain.distillation.lessons import School
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import Artifact, run_stages
from toolchain.training.objective import Batch

TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.005, "warmup_epochs": 0, "log_every_steps": 1}
RESNET = {
    "builtin": "cifar_resnet",
    "args": {"depth": 8, "in_channels": 1, "width": 4, "classes": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of noise with a different mean."""
    random = np.random.default_rng(0)
    labels = np.arange(88) % 4
    images = (random.integers(0, 100, (88, 8, 8)) + 40 * labels[:, None, None]).astype(np.uint8)
    file = tmp_path_factory.mktemp("data") / "shades.npz"
    np.savez(file, x_train=images[:72], y_train=labels[:72], x_test=images[72:], y_test=labels[72:])
    return file


def run(data: Path, out: Path, *stages: dict[str, Any]) -> Artifact:
    recipe = {
        "name": "chain",
        "precision": "float32",
        "model": RESNET,
        "data": {"kind": "npz", "root": str(data), "validation": 0.12},
        "stages": [{"stage": "teacher"}, *stages],
    }
    return run_stages(Recipe.model_validate(recipe), out)


def recover(**distil: Any) -> dict[str, Any]:
    return {"stage": "recover", "distil": distil, **TRAIN}


def log_of(artifact: Artifact) -> list[dict[str, Any]]:
    lines = (artifact.root / "training.metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


EVERYTHING = [
    {"loss": "kl", "strength": 0.5},
    {"loss": "dkd", "strength": 0.5},
    {"loss": "dist", "strength": 0.5},
    {"loss": "logit_mse", "strength": 0.1},
    {"loss": "fitnet", "spot": "layer*", "strength": 0.1},
    {"loss": "at", "spot": "layer*"},
    {"loss": "sp", "spot": "layer3"},
    {"loss": "cc", "spot": "penultimate", "strength": 0.02},
    {"loss": "vid", "spot": "layer*", "strength": 0.1},
    {"loss": "rkd", "spot": "penultimate", "strength": 0.1},
    {"loss": "pkt", "spot": "penultimate"},
    {"loss": "ft", "spot": "layer3"},
    {"loss": "nst", "spot": "layer*", "strength": 0.1},
    {"loss": "crd", "spot": "penultimate", "strength": 0.1},
    {"loss": "ab", "spot": "layer1.0.bn2", "strength": 0.1},
    {"loss": "fsp", "spot": ["layer1", "layer1.0.conv1"], "strength": 0.1},
    {"loss": "ofa", "student_spot": "layer*", "strength": 0.1},
]


def test_every_loss_trains_together_and_ships_nothing(data: Path, tmp_path: Path) -> None:
    with_all = run(data, tmp_path, recover(losses=EVERYTHING))
    alone = run(data, tmp_path, {"stage": "train", **TRAIN})
    shipped, plain = (load_file(a.root / "model.safetensors") for a in (with_all, alone))
    assert {k: v.shape for k, v in shipped.items()} == {k: v.shape for k, v in plain.items()}
    values = log_of(with_all)[0]
    named = {name for name in values if not name.startswith("strength.")}
    assert {"fitnet@layer2", "vid@layer3", "crd@penultimate", "ofa@layer1"} < named
    assert {"fsp@layer1>layer1.0.conv1"} < named
    assert all(np.isfinite(v) for v in values.values() if isinstance(v, float))


def test_the_student_is_the_same_with_and_without_what_it_is_taught_with(
    data: Path, tmp_path: Path
) -> None:
    """Terms of strength 0 have adapters, memories and exits, of which nothing reaches the student."""
    idle = [{**loss, "strength": 0.0} for loss in EVERYTHING]
    taught = run(data, tmp_path, recover(losses=idle, task_strength=1.0))
    alone = run(data, tmp_path, recover(losses=[], task_strength=1.0))
    assert taught.root != alone.root
    one, other = (load_file(a.root / "model.safetensors") for a in (taught, alone))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dean_looks_ahead_at_what_the_student_is_never_fitted_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And probes with what it is fitted on: every image is known by its pixels, as nothing augments them."""
    fitted, probed, held_out = set[bytes](), set[bytes](), set[bytes]()

    def known(batch: Batch) -> set[bytes]:
        return {image.numpy().tobytes() for image in batch.images_BCHW}

    def gradients(school: School, batch: Batch, *rest: Any) -> Any:
        probed.update(known(batch))
        return gradients_of(school, batch, *rest)

    def ahead(*given: Any) -> Any:
        held_out.update(known(given[4]))
        return ahead_of(*given)

    def shared(school: School, batch: Batch) -> Any:
        fitted.update(known(batch))
        return lesson_of(school, batch)

    gradients_of, ahead_of, lesson_of = dean.term_gradients, dean.look_ahead, School.shared
    monkeypatch.setattr(dean, "term_gradients", gradients)
    monkeypatch.setattr(dean, "look_ahead", ahead)
    monkeypatch.setattr(School, "shared", shared)
    options = {"probe_every": 1, "probe_size": 8, "held_out": 0.3}
    run(data, tmp_path, recover(controller="dean", controller_options=options) | {"epochs": 3})
    assert held_out and probed and fitted
    assert held_out.isdisjoint(fitted | probed)
    assert (len(held_out), len(fitted | probed)) == (20, 44)  # the whole training part


def test_what_teaches_starts_alike_whatever_ran_before(data: Path, tmp_path: Path) -> None:
    stage = recover(losses=EVERYTHING, controller="temperature")
    torch.manual_seed(1)
    first = run(data, tmp_path / "first", stage)
    torch.manual_seed(2)
    second = run(data, tmp_path / "second", stage)
    one, other = (load_file(a.root / "model.safetensors") for a in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)


CONTROLLERS: dict[str, dict[str, Any]] = {
    "ramp": {},
    "dean": {"probe_every": 2, "probe_size": 8, "held_out": 0.3},
    "spot-adaptive": {},
    "temperature": {},
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_leaves_a_line_for_every_step(name: str, data: Path, tmp_path: Path) -> None:
    losses = [{"loss": "at", "spot": "layer*", "strength": 2.0}, {"loss": "kl", "strength": 0.5}]
    options = CONTROLLERS[name]
    last = run(data, tmp_path, recover(losses=losses, controller=name, controller_options=options))
    lines = log_of(last)
    trail = [line for line in lines if line["kind"] == "trail"]
    steps = max(line["step"] for line in lines)
    assert [line["step"] for line in trail] == list(range(1, steps + 1))
    assert {"strength.task", "strength.kl", "strength.at@layer2"} < set(trail[0])


def test_the_in_network_teachers_norms_move_once_a_step_whoever_looks(
    data: Path, tmp_path: Path
) -> None:
    """PQK's own pass moves them in phase 2, and the recipe's terms see the same statistics."""
    inside = {"one": {"kind": "in-network"}, "two": {"kind": "in-network"}}
    terms = [
        {"loss": "at", "spot": "layer1", "teacher": "one"},
        {"loss": "at", "spot": "layer2", "teacher": "two"},
    ]
    distil = {"teachers": inside, "losses": terms}
    prune = {"stage": "pqk-prune", "sparsity": 0.4, **TRAIN}
    alone = run(data, tmp_path, prune, {"stage": "pqk-distil", **TRAIN})
    watched = run(data, tmp_path, prune, {"stage": "pqk-distil", "pretrained": distil, **TRAIN})
    first = run(data, tmp_path, {**prune, "distil": distil})

    def counts(artifact: Artifact) -> set[int]:
        state = load_file(artifact.root / "model.safetensors")
        return {
            int(value)
            for name, value in state.items()
            if name.endswith("teacher.num_batches_tracked")
        }

    steps = log_of(first)[-1]["step"]
    assert steps > 1
    assert counts(first) == {steps}
    # Phase 2's begin as copies of the student's, which phase 1 has moved.
    assert counts(alone) == counts(watched) == {2 * steps}


def test_two_teachers_under_a_dean_on_a_student_that_is_pruned_and_quantized(
    data: Path, tmp_path: Path
) -> None:
    """Phase 1 with the pretrained and the in-network teacher, phase 2 with both under a dean too."""
    under_dean = {
        "controller": "dean",
        "controller_options": {"probe_every": 2, "probe_size": 8, "held_out": 0.3},
    }
    phase_1 = {
        "stage": "pqk-prune",
        "sparsity": 0.4,
        "distil": {
            "teachers": {"inside": {"kind": "in-network"}},
            "losses": [{"loss": "kl"}, {"loss": "kl", "teacher": "inside", "strength": 0.4}],
            **under_dean,
        },
        **TRAIN,
    }
    phase_2 = {
        "stage": "pqk-distil",
        "strength": 0.3,
        "pretrained": {"losses": [{"loss": "at", "spot": "layer*"}, {"loss": "kl"}], **under_dean},
        **TRAIN,
    }
    last = run(data, tmp_path, phase_1, phase_2, {"stage": "slim"})
    first, second = last.find("pqk-prune"), last.find("pqk-distil")
    strengths = [line for line in log_of(first) if line["kind"] == "trail"][-1]
    assert {"strength.kl", "strength.kl:inside"} < set(strengths)
    strengths = [line for line in log_of(second) if line["kind"] == "trail"][-1]
    assert {"strength.in_network_kl", "strength.kl", "strength.at@layer2"} < set(strengths)
    assert (second.root / "dean.safetensors").is_file()
    assert "dean.safetensors" not in {path.name for path in last.root.iterdir()}


def test_an_assistant_and_a_student_of_another_family(data: Path, tmp_path: Path) -> None:
    small = {"stage": "student", "builtin": "cifar_resnet", "args": RESNET["args"] | {"width": 2}}
    chained = {
        "teachers": {"assistant": {"kind": "assistant", "stage": "recover"}},
        "losses": [
            {"loss": "kl", "teacher": "assistant"},
            {"loss": "at", "spot": "layer*", "teacher": "assistant"},
        ],
    }
    last = run(data, tmp_path, recover(), small, recover(**chained))
    assert {"kl:assistant", "at@layer2:assistant"} < set(log_of(last)[0])


@pytest.mark.parametrize(
    ("distil", "kind", "message"),
    [
        ({"losses": [{"loss": "kll"}]}, ConfigError, "did you mean 'kl'"),
        ({"losses": [{"loss": "at", "spot": "stage*"}]}, ConfigError, "'stage*'"),
        ({"losses": [{"loss": "kl", "spot": "layer1"}]}, ConfigError, "compares classes"),
        ({"losses": [{"loss": "at", "spot": "penultimate"}]}, ConfigError, "(16,)"),
        ({"losses": [{"loss": "kl", "teacher": "ta"}]}, ConfigError, "unknown 'ta'"),
        (
            {"losses": [{"loss": "ft", "spot": "layer2", "student_spot": "penultimate"}]},
            ConfigError,
            "(penultimate gives (16,) in the student, layer2 gives (8, 4, 4) in the teacher)",
        ),
        ({"controller": "deen"}, ConfigError, "did you mean 'dean'"),
        ({"controller": "dean", "controller_options": {"probes": 1}}, ConfigError, "'probes'"),
        (
            {"controller": "dean", "controller_options": {"held_out": 0.001}},
            ConfigError,
            "held_out",
        ),
    ],
)
def test_what_cannot_work_is_one_line(
    distil: dict[str, Any],
    kind: type[CompressDeployError],
    message: str,
    data: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind) as error:
        run(data, tmp_path, recover(**distil))
    assert message in str(error.value)
    assert str(error.value).startswith("stages[1] (recover): distil.")
    assert "\n" not in str(error.value)
